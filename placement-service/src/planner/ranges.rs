//! Ranges of extents against one another.

use replicator::words::Extents;

pub(super) fn overlap(a: Extents, b: Extents) -> bool {
    a.first < b.end && b.first < a.end
}

pub(super) fn inside(inner: Extents, outer: Extents) -> bool {
    outer.first <= inner.first && inner.end <= outer.end
}

pub(super) fn intersection(a: Extents, b: Extents) -> Extents {
    Extents::new(a.first.max(b.first), a.end.min(b.end))
}

/// Neighbours in one piece. They come in order.
pub(super) fn joined(extents: impl Iterator<Item = Extents>) -> Vec<Extents> {
    let mut all: Vec<Extents> = Vec::new();
    for extents in extents {
        match all.last_mut() {
            Some(before) if before.end >= extents.first => before.end = before.end.max(extents.end),
            _ => all.push(extents),
        }
    }
    all
}
