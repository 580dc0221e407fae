//! Words for people that more than one part needs.

use replicator::words::{HostName, StoreId};

/// `1 disk`, `2 disks`.
pub fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Says of each store that is only numbered on which host it is.
pub fn with_hosts<'a>(
    mut line: String,
    stores: impl IntoIterator<Item = (StoreId, &'a HostName)>,
) -> String {
    for (id, host) in stores {
        let id = id.to_string();
        let mut from = 0;
        while let Some(at) = line[from..].find(&id) {
            let end = from + at + id.len();
            if !line[end..].starts_with(" on ") {
                line.insert_str(end, &format!(" on {host}"));
            }
            from = end;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_has_its_plural() {
        assert_eq!(counted(1, "disk"), "1 disk");
        assert_eq!(counted(0, "disk"), "0 disks");
    }

    #[test]
    fn stores_are_said_with_their_hosts_once() {
        let host = HostName::new("tokyo-1").unwrap();
        let [one, two] = [1, 2].map(StoreId::from_u128);
        let said = with_hosts(
            format!("stores [{one}, {two}], store {one} on tokyo-1"),
            [(one, &host), (two, &host)],
        );
        assert_eq!(
            said,
            format!("stores [{one} on tokyo-1, {two} on tokyo-1], store {one} on tokyo-1")
        );
    }
}
