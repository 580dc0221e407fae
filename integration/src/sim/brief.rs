//! How traces put things.

use super::store_node::name;
use replicator::message::{Reply, Request};
use replicator::words::{Blocks, Change, Epoch, MapRange, StoreId};

pub(super) fn brief(request: &Request) -> String {
    let at = |epoch: Epoch, blocks: &Blocks| format!("{epoch} {blocks}");
    match request {
        Request::Seal { epoch, .. } => format!("Seal {epoch}"),
        Request::Join {
            asker,
            from,
            extents,
            ..
        } => format!("Join {} {extents} from {from}", asker.epoch),
        Request::Write {
            asker,
            seq,
            watermark,
            blocks,
            content,
        } => {
            let zeroes = matches!(content, replicator::message::Content::Zeroes);
            let what = if zeroes { "Zero" } else { "Write" };
            format!(
                "{what} {}:{} wm {} {blocks} inc {}",
                asker.epoch, seq.0, watermark.0, asker.incarnation.0
            )
        }
        Request::Read {
            asker,
            from,
            below,
            blocks,
        } => {
            format!("Read {} from {from} below {below}", at(asker.epoch, blocks))
        }
        Request::Sync { asker } => format!("Sync {} inc {}", asker.epoch, asker.incarnation.0),
        Request::List {
            asker,
            extents,
            above,
            start,
        } => {
            format!(
                "List {} {extents} above {above} at {}",
                asker.epoch, start.0
            )
        }
        Request::Keep {
            asker,
            extents,
            below,
        } => format!("Keep {} {extents} below {below}", asker.epoch),
        Request::Settle { asker, extents } => format!("Settle {} {extents}", asker.epoch),
        Request::Collapse {
            asker,
            extents,
            oldest,
        } => format!("Collapse {} {extents} to {oldest}", asker.epoch),
        Request::Survey {
            asker,
            from,
            below,
            extents,
            start,
        } => format!(
            "Survey {} {extents} from {from} below {below} at {}",
            asker.epoch, start.0
        ),
        Request::Pull {
            asker,
            source,
            from,
            below,
            blocks,
        } => format!(
            "Pull {} out of {} from {from} below {below}",
            at(asker.epoch, blocks),
            name(source.store)
        ),
        Request::Heal {
            asker,
            source,
            from,
            below,
            blocks,
        } => format!(
            "Heal {} out of {} from {from} below {below}",
            at(asker.epoch, blocks),
            name(source.store)
        ),
        Request::Digest {
            asker,
            from,
            extents,
        } => format!("Digest {} {extents} from {from}", asker.epoch),
        Request::Verify { asker, blocks } => format!("Verify {}", at(asker.epoch, blocks)),
        Request::Fetch {
            asker,
            from,
            below,
            blocks,
            known,
            ..
        } => format!(
            "Fetch {} {blocks:?} from {from} below {below} known {known:?}",
            asker.epoch
        ),
    }
}

pub(super) fn brief_reply(reply: &Reply) -> String {
    match reply {
        Reply::Sealed(sealed) => format!(
            "Sealed inc {} wm {} {:?}",
            sealed.incarnation.0, sealed.watermark, sealed.replicas
        ),
        Reply::Read(read) => format!("Read {:?}", read.found),
        Reply::Fetched(fetched) => format!("Fetched {:?}", fetched.found),
        Reply::Listed { blocks, more } => {
            let blocks: Vec<_> = blocks.iter().map(|b| (b.block.0, b.version)).collect();
            format!("Listed {blocks:?} more {more}")
        }
        other => format!("{other:?}"),
    }
}

pub(super) fn brief_change(change: &Change) -> String {
    let names = |stores: &Vec<StoreId>| {
        stores
            .iter()
            .map(|s| name(*s))
            .collect::<Vec<_>>()
            .join(" ")
    };
    match change {
        Change::Switch { sets, .. } => format!("Switch of {} sets", sets.len()),
        Change::Complete { extents, from, .. } => format!("Complete {extents} from {from}"),
        Change::Attach { sets, .. } => format!("Attach with {} new sets", sets.len()),
        Change::TakeOver { .. } => "TakeOver".into(),
        Change::Settle { drop, .. } => format!("Settle, drops [{}]", names(drop)),
        Change::Eject { stores, .. } => format!("Eject [{}]", names(stores)),
        Change::Close { last, .. } => format!("Close after {last}"),
    }
}

pub(super) fn brief_map(map: &[MapRange]) -> String {
    let mut text = String::new();
    for range in map {
        text += &format!(" {}:", range.extents);
        for entry in &range.history.0 {
            let names: Vec<String> = entry.stores.iter().map(|s| name(*s)).collect();
            let until = entry.until.map_or(String::new(), |until| until.to_string());
            let whole = if entry.whole { "" } else { " filling" };
            text += &format!(" ({}..{until} {}{whole})", entry.from, names.join(" "));
        }
    }
    text
}
