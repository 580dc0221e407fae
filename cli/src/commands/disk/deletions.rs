//! `ukai disk deletions`: the record of copies that were dropped, and of what made that safe (I7).

use crate::operator::Connection;
use crate::output::{Output, human_bytes, table};
use crate::places::Places;
use placement_service::api::Deletion;
use replicator::words::{DiskName, Extents};

pub fn run(name: &DiskName, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let deletions: Vec<Deletion> = service.get(&format!("/v1/disks/{name}/deletions"))?;
    let places = Places::of(&service)?;
    output.show(&deletions, |deletions| describe(name, deletions, &places));
    Ok(())
}

fn describe(disk: &DiskName, deletions: &[Deletion], places: &Places) -> String {
    if deletions.is_empty() {
        return format!("no copy of {disk} has been deleted");
    }
    let rows = deletions.iter().map(|deletion| {
        let extents: Vec<String> = deletion.extents.iter().map(Extents::to_string).collect();
        [
            deletion.done.to_string(),
            places.name(deletion.store),
            extents.join(", "),
            human_bytes(deletion.bytes),
            places.names(&deletion.superseded_by),
        ]
    });
    table(["DELETED", "FROM", "EXTENTS", "BYTES", "COMPLETE ON"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::tests::{places, store};
    use placement_service::policy::UnixSeconds;
    use replicator::words::{DiskId, Extent, Revision};

    #[test]
    fn a_deletion_names_the_copies_that_made_it_safe() {
        let deletion = Deletion {
            disk: DiskId::from_u128(1),
            store: store(1),
            extents: vec![Extents::new(Extent(0), Extent(8))],
            bytes: 3 << 30,
            superseded_by: vec![store(3), store(4)],
            revision: Revision(9),
            ordered: UnixSeconds(1_795_298_400),
            done: UnixSeconds(1_795_298_460),
        };
        let disk = DiskName::new("web1").unwrap();
        let text = describe(&disk, &[deletion], &places());
        assert!(
            text.ends_with(
                "2026-11-21 22:01 UTC  tokyo-1  0..8     3 GiB  osaka-1/00000003, osaka-1/00000004"
            ),
            "{text}"
        );
        assert!(describe(&disk, &[], &places()).starts_with("no copy"));
    }
}
