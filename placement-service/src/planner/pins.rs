//! Taking a store out of pins.

use super::ranges::intersection;
use crate::policy::{Hold, Pin};
use replicator::words::{Extents, StoreId};

/// The pins without `store` in `part`. A pin of more extents than that goes on for the others; `all` are
/// the disk's.
pub(super) fn without(pins: &[Pin], store: StoreId, part: Extents, all: Extents) -> Vec<Pin> {
    let mut left = Vec::with_capacity(pins.len());
    for pin in pins {
        let stores = match &pin.hold {
            Hold::On(stores) | Hold::Also(stores) | Hold::Off(stores) | Hold::Without(stores) => {
                stores
            }
            Hold::In(_) => {
                left.push(pin.clone());
                continue;
            }
        };
        if !stores.contains(&store) {
            left.push(pin.clone());
            continue;
        }
        let others: Vec<StoreId> = stores
            .iter()
            .copied()
            .filter(|other| *other != store)
            .collect();
        let own = pin.extents.unwrap_or(all);
        let pieces = [
            (Extents::new(own.first, own.end.min(part.first)), stores),
            (intersection(own, part), &others),
            (Extents::new(own.first.max(part.end), own.end), stores),
        ];
        for (extents, stores) in pieces {
            if extents.count() == 0 || stores.is_empty() {
                continue;
            }
            let hold = match &pin.hold {
                Hold::On(_) => Hold::On(stores.clone()),
                Hold::Also(_) => Hold::Also(stores.clone()),
                Hold::Without(_) => Hold::Without(stores.clone()),
                _ => Hold::Off(stores.clone()),
            };
            left.push(Pin {
                extents: Some(extents),
                hold,
                ..pin.clone()
            });
        }
    }
    left
}
