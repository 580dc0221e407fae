//! Stories, each as a script: who does what, in which order. Those of the protocol's review, by its
//! numbers, and the disasters that other systems are known for. Only the network's waits are drawn.
//! Whatever the order, all must read back as guests may read it, and the members must be the same in the end.

mod catalogs;
mod crashes;
mod disasters;
mod moves;
mod verbs;

use super::dice::Dice;
use super::trace::Trace;
use super::world::{Shape, Violation, World};
use super::{Outcome, Show};
use replicator::plant::{Plant, plant};
use std::panic::AssertUnwindSafe;

type Told = Result<(), Violation>;

/// A story, and how many ways it can go.
pub struct Script {
    pub name: &'static str,
    pub ways: u64,
    /// Told with the real placement service, which then has a node beside each store.
    managed: bool,
    tell: fn(&mut World, u64) -> Told,
}

const fn script(name: &'static str, ways: u64, tell: fn(&mut World, u64) -> Told) -> Script {
    Script {
        name,
        ways,
        managed: false,
        tell,
    }
}

const fn managed(name: &'static str, ways: u64, tell: fn(&mut World, u64) -> Told) -> Script {
    Script {
        managed: true,
        ..script(name, ways, tell)
    }
}

/// Of the review's twelfth scenario only the second half: there are no snapshots yet.
pub const ALL: [Script; 31] = [
    script(
        "1: there and back before the fill ends, overwriting in each place",
        6,
        moves::there_and_back,
    ),
    script(
        "2: a move is cancelled after writes and discards that only its target has",
        6,
        moves::cancelled,
    ),
    script(
        "3: a member's host crashes and is back before anybody notices; flush; the other one dies",
        12,
        crashes::flush_after_an_unseen_crash,
    ),
    script(
        "4: all members lose power, one is late, the other's process restarts before they are settled",
        12,
        crashes::one_returns_late,
    ),
    script(
        "5: the writer dies between swap and reissue while a store is added, or ejected",
        40,
        crashes::dies_between_swap_and_reissue,
    ),
    script(
        "5: the writer and the member that is left die before an ejection is made",
        6,
        crashes::ejection_not_made,
    ),
    script(
        "5: only one of those that stay took a write before an ejection",
        8,
        crashes::held_by_one_before_an_ejection,
    ),
    script(
        "6: power is lost right after a settling",
        12,
        crashes::power_lost_after_settling,
    ),
    script(
        "6: the authority dies amid a settling, and a second settler comes between",
        60,
        crashes::two_settlers,
    ),
    script(
        "7: destination before close, late close, source resumes, two destinations",
        4,
        moves::hand_over_races,
    ),
    script(
        "8: the target loses power around its completion",
        80,
        moves::power_loss_around_completion,
    ),
    script(
        "8: the source's replica goes while a read of it is on its way",
        10,
        moves::deletion_with_a_late_read,
    ),
    script(
        "9: what only a member that was ejected has is never read",
        4,
        moves::dead_tail,
    ),
    script(
        "9: what stood there before another store joined is the truth again",
        6,
        crashes::kept_for_those_who_joined,
    ),
    script(
        "9: a store with a dead tail rejoins after discards and cleaning",
        6,
        crashes::rejoin_after_cleaning,
    ),
    script(
        "10: fill, write, discard and a next epoch in every order",
        24 * 4,
        moves::every_order,
    ),
    script(
        "11: swaps whose outcome is unknown",
        24,
        crashes::unknown_outcomes,
    ),
    managed(
        "11: the catalog is restored from a backup that knows less than the stores",
        12,
        catalogs::restored,
    ),
    managed(
        "11: two placement services believe that they lead",
        16,
        catalogs::two_that_lead,
    ),
    script(
        "11: a store is put back to an older copy of itself",
        4,
        crashes::store_rolled_back,
    ),
    script(
        "11: a member is put back to a copy of a moment ago, in the same epoch",
        8,
        crashes::put_back_within_the_epoch,
    ),
    script(
        "a sync fails and the next one would not; then all lose power",
        8,
        crashes::failed_sync_is_final,
    ),
    script(
        "12: writes of 512 bytes onto absent blocks during an ejection",
        40,
        moves::partial_writes_amid_an_ejection,
    ),
    script(
        "pairwise cuts: a store returns that believes itself current",
        12,
        disasters::believes_itself_current,
    ),
    script(
        "far away: a store missed writes and is taken for complete",
        8,
        disasters::taken_for_complete,
    ),
    script(
        "all went down: the copy that is larger and later is chosen",
        8,
        disasters::larger_and_later,
    ),
    script(
        "a rebuild copies an extent while it is written",
        40,
        disasters::rebuilt_while_written,
    ),
    script(
        "a replay into a store that forgot which epoch it was shown",
        24,
        disasters::replay_after_forgetting,
    ),
    script(
        "a hand-over forgets what was not synced",
        30,
        disasters::hand_over_unsynced,
    ),
    script(
        "the dropped location held the only good copy",
        20,
        disasters::only_good_copy_dropped,
    ),
    script(
        "a member that was ejected comes back late in a fill, and its old entry is needed",
        12,
        disasters::needed_after_ejection,
    ),
];

impl Script {
    /// Tells it one way.
    pub fn run(&self, way: u64, bug: Option<Plant>, show: Show) -> Outcome {
        let keep = if show == Show::Nothing { 0 } else { 80 };
        let shape = Shape {
            stores: 4,
            disks: 1,
            hosts: if self.managed { 4 } else { 3 },
            sites: 2,
            copies: if self.managed { 2 } else { 1 },
            extents: 2,
        };
        let trace = Trace::new(keep, show == Show::All);
        let mut world = World::of(shape, Dice::new(way), trace);
        world.quiet = true;
        plant(bug);
        let told = std::panic::catch_unwind(AssertUnwindSafe(|| {
            if self.managed {
                world.manage(shape);
            }
            (self.tell)(&mut world, way)?;
            world.finish()
        }));
        plant(None);
        super::outcome(way, &world, told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_story_ends_well() {
        for script in &ALL {
            for way in 0..script.ways {
                let outcome = script.run(way, None, Show::Last);
                if let Some((what, lines)) = outcome.violation {
                    let lines = lines.join("\n");
                    panic!("{lines}\n{}, way {way}: {what}", script.name);
                }
            }
        }
    }
}
