//! What a policy file writes as text: rates, times of day, durations.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const MINUTES_A_DAY: u16 = 24 * 60;
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Seconds since 1970 in UTC, as the shell's clock says.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    pub fn after(self, time: Duration) -> UnixSeconds {
        UnixSeconds(self.0.saturating_add(time.as_secs()))
    }

    pub fn since(self, earlier: UnixSeconds) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for UnixSeconds {
    /// `2026-11-21 22:00 UTC`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A catalog may hold any number; the calendar ends in the year 9999.
        let Ok(at) = time::OffsetDateTime::from_unix_timestamp(self.0.min(i64::MAX as u64) as i64)
        else {
            return f.write_str("never");
        };
        let (date, hour, minute) = (at.date(), at.hour(), at.minute());
        write!(f, "{date} {hour:02}:{minute:02} UTC")
    }
}

/// A time of day, every day, in UTC: `22:00-06:00`. The end is not in it; it may lie past midnight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    from_minute: u16,
    end_minute: u16,
}

impl Window {
    pub fn contains(self, now: UnixSeconds) -> bool {
        let minute = (now.0 / 60 % u64::from(MINUTES_A_DAY)) as u16;
        if self.from_minute < self.end_minute {
            (self.from_minute..self.end_minute).contains(&minute)
        } else {
            minute >= self.from_minute || minute < self.end_minute
        }
    }

    /// Now, or when it opens next.
    pub fn opens(self, now: UnixSeconds) -> UnixSeconds {
        if self.contains(now) {
            return now;
        }
        let day = u64::from(MINUTES_A_DAY) * 60;
        let opens = now.0 / day * day + u64::from(self.from_minute) * 60;
        UnixSeconds(if opens < now.0 { opens + day } else { opens })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, end) = (self.from_minute, self.end_minute);
        let (fh, fm, eh, em) = (from / 60, from % 60, end / 60, end % 60);
        write!(f, "{fh:02}:{fm:02}-{eh:02}:{em:02}")
    }
}

impl From<Window> for String {
    fn from(window: Window) -> String {
        window.to_string()
    }
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let minutes = |time: &str| {
            let (hour, minute) = time.trim().split_once(':')?;
            let digits = |s: &str| s.len() <= 2 && s.bytes().all(|b| b.is_ascii_digit());
            let number = |s: &str| s.parse::<u16>().ok().filter(|_| digits(s));
            let (hour, minute) = (number(hour)?, number(minute)?);
            (minute < 60 && hour * 60 + minute <= MINUTES_A_DAY).then_some(hour * 60 + minute)
        };
        let parsed = text
            .split_once('-')
            .and_then(|(from, end)| Some((minutes(from)?, minutes(end)?)))
            .filter(|(from, _)| *from < MINUTES_A_DAY);
        let Some((from_minute, end_minute)) = parsed else {
            return Err(format!(
                "{text:?} is no time of day; write \"22:00-06:00\", in UTC"
            ));
        };
        if from_minute == end_minute {
            return Err(format!(
                "{text:?} is empty; for the whole day leave the windows out"
            ));
        }
        Ok(Window {
            from_minute,
            end_minute,
        })
    }
}

/// Bytes per second from `100MiB/s`; none from `unlimited`.
pub fn parse_rate(text: &str) -> Result<Option<u64>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    let wrong = || format!("{text:?} is no rate; write \"100MiB/s\", or \"unlimited\"");
    let amount = text.strip_suffix("/s").ok_or_else(wrong)?;
    let digits = amount.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = amount.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or_else(wrong)?;
    match number.checked_mul(unit.1) {
        Some(0) => Err(format!(
            "{text:?} would copy nothing, for ever; say when to copy with windows, or pause a move"
        )),
        Some(rate) => Ok(Some(rate)),
        None => Err(wrong()),
    }
}

/// `100MiB/s`: the largest unit that says it exactly.
pub fn rate(bytes_per_second: Option<u64>) -> String {
    let Some(rate) = bytes_per_second else {
        return "unlimited".into();
    };
    let (unit, bytes) = UNITS
        .iter()
        .filter(|(_, bytes)| rate >= *bytes && rate.is_multiple_of(*bytes))
        .max_by_key(|(_, bytes)| *bytes)
        .unwrap_or(&UNITS[0]);
    format!("{}{unit}/s", rate / bytes)
}

/// `30s`, `5m`, `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| {
        format!("{text:?} is no time ({error}); write for example \"30s\" or \"5m\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    #[test]
    fn a_window_may_pass_midnight() {
        let night: Window = "22:00-06:00".parse().unwrap();
        let at = |hour: u64| UnixSeconds(20_000 * 24 * HOUR + hour * HOUR);
        assert!(night.contains(at(23)) && night.contains(at(5)) && night.contains(at(22)));
        assert!(!night.contains(at(6)) && !night.contains(at(12)));
        assert_eq!(night.opens(at(23)), at(23));
        assert_eq!(night.opens(at(12)), at(22));
        let lunch: Window = "12:00-13:30".parse().unwrap();
        assert_eq!(lunch.opens(at(14)), at(36), "tomorrow");
        assert_eq!(night.to_string(), "22:00-06:00");
        let evening: Window = "20:00-24:00".parse().unwrap();
        assert!(evening.contains(at(23)) && !evening.contains(at(0)));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for wrong in [
            "",
            "22-06",
            "22:00",
            "25:00-26:00",
            "10:00-10:00",
            "10:60-11:00",
            "-1:00-2:00",
            "24:00-01:00",
            "99999:00-1:00",
        ] {
            assert!(wrong.parse::<Window>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_read_and_written_alike() {
        for (text, bytes) in [
            ("100MiB/s", 100 << 20),
            ("1GB/s", 1_000_000_000),
            ("512KiB/s", 512 << 10),
            ("7B/s", 7),
        ] {
            assert_eq!(parse_rate(text), Ok(Some(bytes)));
            assert_eq!(rate(Some(bytes)), text);
        }
        assert_eq!(parse_rate("unlimited"), Ok(None));
        for wrong in [
            "",
            "100",
            "100MiB",
            "MiB/s",
            "0B/s",
            "1.5GiB/s",
            "-1MiB/s",
            "99999999999TiB/s",
            "5 parsecs/s",
        ] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(
            UnixSeconds(1_795_298_400).to_string(),
            "2026-11-21 22:00 UTC"
        );
        assert_eq!(UnixSeconds(u64::MAX).to_string(), "never");
    }
}
