//! `ukai links`: what lies between the datacenters, as their nodes measure it.

use crate::operator::Connection;
use crate::output::{Output, human_rate, human_time, table};
use placement_service::api::Link;
use std::time::Duration;

/// Show round trip, throughput and compression between each two datacenters.
///
/// Nodes measure them all the time, by the traffic that there is and by a probe a second where there is none. Throughput
/// is what a link showed when it was last loaded; compression what copies sent lately shrank by.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ukai links")]
pub struct Args {}

pub fn run(_: Args, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let links: Vec<Link> = connection.service()?.get("/v1/links")?;
    output.show(&links, |links| describe(links));
    Ok(())
}

fn describe(links: &[Link]) -> String {
    if links.is_empty() {
        return "nothing is measured yet: no two nodes have heard of one another".into();
    }
    let rows = links.iter().map(|link| {
        [
            link.from.to_string(),
            link.to.to_string(),
            human_time(Duration::from_micros(link.round_trip_us)),
            link.bytes_per_second
                .map_or("not loaded yet".into(), human_rate),
            link.compression.map_or("-".into(), ratio),
            link.nodes.to_string(),
        ]
    });
    table(
        [
            "FROM",
            "TO",
            "ROUND TRIP",
            "THROUGHPUT",
            "COMPRESSION",
            "SAID BY",
        ],
        rows,
    )
}

fn ratio(compression: f64) -> String {
    match compression {
        ..1.05 => "off".into(),
        _ => format!("{compression:.1} to 1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replicator::words::DatacenterName;

    #[test]
    fn what_was_never_measured_is_not_made_up() {
        let link = Link {
            from: DatacenterName::new("tokyo").unwrap(),
            to: DatacenterName::new("osaka").unwrap(),
            round_trip_us: 20_100,
            bytes_per_second: None,
            compression: None,
            nodes: 2,
        };
        let loaded = Link {
            bytes_per_second: Some(110 << 20),
            compression: Some(2.25),
            ..link.clone()
        };
        assert_eq!(
            describe(&[link, loaded]),
            "FROM   TO     ROUND TRIP  THROUGHPUT      COMPRESSION  SAID BY
tokyo  osaka  20.1 ms     not loaded yet  -            2
tokyo  osaka  20.1 ms     110 MiB/s       2.2 to 1     2"
        );
        assert!(describe(&[]).contains("nothing is measured"));
    }
}
