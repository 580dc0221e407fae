//! Bytes, rates and times as people write and read them.

use placement_service::policy;
use std::time::Duration;

/// Bytes as people say them: `20 GiB`, `1.5 MiB`, `512 B`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.trim_end_matches(".0"), UNITS[unit])
}

/// Parses `20G`, `512MiB`, `4096`: powers of 1024, as QEMU's tools have it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len()
        - text
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            .len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit
        .trim()
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => {
            return Err(format!(
                "{unit:?} is not a unit; use K, M, G, T or P (powers of 1024)"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a size; try 20G or 512M"))?;
    let bytes = number * (1u64 << shift) as f64;
    if !(bytes.is_finite() && bytes < (1u64 << 60) as f64) {
        return Err(format!("{text} is too large"));
    }
    Ok(bytes as u64)
}

/// Bytes a second as people say them: `100 MiB/s`.
pub fn human_rate(bytes_per_second: u64) -> String {
    format!("{}/s", human_bytes(bytes_per_second))
}

/// Parses `100M`, and what policy files write: `20MiB/s`, `20MB/s`. Bytes a second.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if let Ok(Some(rate)) = policy::units::parse_rate(text) {
        return Ok(rate);
    }
    match parse_bytes(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("at 0 nothing would ever be copied; `ukai moves pause` is for that".into()),
        bytes => Ok(bytes),
    }
}

/// A time as people say it: `2h 5m`, `1m 40s`, `20.3 ms`, `85 us`.
pub fn human_time(time: Duration) -> String {
    let us = time.as_micros();
    let s = time.as_secs();
    match (us, s) {
        (0, _) => "0s".into(),
        (..1_000, _) => format!("{us} us"),
        (..1_000_000, _) => {
            let ms = format!("{:.1}", us as f64 / 1e3);
            format!("{} ms", ms.trim_end_matches(".0"))
        }
        (_, ..60) => format!("{s}s"),
        (_, ..3600) => two(s / 60, "m", s % 60, "s"),
        (_, ..86_400) => two(s / 3600, "h", s % 3600 / 60, "m"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{small_unit}"),
    }
}

/// `part` of `whole`, in percent. All is said of all only: 99.9 % that is not done is 99 %.
pub fn percent(part: u64, whole: u64) -> String {
    let percent = match whole {
        0 => 100,
        _ => u128::from(part) * 100 / u128::from(whole),
    };
    format!("{percent}%")
}

/// `1 disk`, `2 disks`, `3 copies`.
pub fn counted(count: u64, what: &str) -> String {
    match (count, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {what}s"),
    }
}

/// Bytes of a disk as an operator names them: `0..10G`, `5G..` to its end, `..1G` from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes {
    pub first: u64,
    /// None: to the end of the disk.
    pub end: Option<u64>,
}

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let Some((first, end)) = text.split_once("..") else {
            return Err(format!("{text:?} is not a range; try 0..10G, or 5G.."));
        };
        let side = |text: &str| match text.trim() {
            "" => Ok(None),
            text => parse_bytes(text).map(Some),
        };
        let range = Bytes {
            first: side(first)?.unwrap_or(0),
            end: side(end)?,
        };
        match range.end {
            Some(end) if end <= range.first => Err(format!("{text} is empty: its end comes first")),
            _ => Ok(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_said_alike() {
        for (text, bytes) in [
            ("20G", 20 << 30),
            ("1.5M", 3 << 19),
            ("4096", 4096),
            ("2 TiB", 2 << 40),
            ("7kb", 7168),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        assert_eq!(human_bytes(3 << 19), "1.5 MiB");
        assert_eq!(human_bytes(20 << 30), "20 GiB");
        assert_eq!(human_bytes(512), "512 B");
        for bad in ["", "G", "20X", "1e400", "-1", "9999999P"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_read_with_and_without_their_second() {
        assert_eq!(parse_rate("20M"), Ok(20 << 20));
        assert_eq!(parse_rate("20MiB/s"), Ok(20 << 20));
        assert_eq!(parse_rate("20MB/s"), Ok(20_000_000));
        assert_eq!(human_rate(20 << 20), "20 MiB/s");
        assert!(parse_rate("0").unwrap_err().contains("pause"));
        assert!(parse_rate("fast").is_err());
    }

    #[test]
    fn times_are_said_in_two_units_at_most() {
        let said = |us: u64| human_time(Duration::from_micros(us));
        assert_eq!(said(0), "0s");
        assert_eq!(said(85), "85 us");
        assert_eq!(said(20_310), "20.3 ms");
        assert_eq!(said(2_000_000), "2s");
        assert_eq!(said(100_000_000), "1m 40s");
        assert_eq!(said(3_600_000_000), "1h");
        assert_eq!(said(90_061_000_000), "1d 1h");
    }

    #[test]
    fn all_is_said_of_all_only() {
        assert_eq!(percent(999, 1000), "99%");
        assert_eq!(percent(5, 5), "100%");
        assert_eq!(percent(0, 0), "100%");
    }

    #[test]
    fn ranges_of_bytes() {
        let bytes = |first, end| Ok(Bytes { first, end });
        assert_eq!("0..10G".parse(), bytes(0, Some(10 << 30)));
        assert_eq!("5G..".parse(), bytes(5 << 30, None));
        assert_eq!("..1M".parse(), bytes(0, Some(1 << 20)));
        for wrong in ["10G", "5G..1G", "1..1", "a..b"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }
}
