//! Over random fleets, policies, maps and moves: what a plan promises.

use super::*;
use crate::policy::{Hold, Until};
use proptest::prelude::*;

const SITES: [&str; 3] = ["tokyo", "osaka", "kyoto"];
const EXTENTS: u32 = 12;
/// Nobody waits for a store that has been away since.
const LONG_AGO: UnixSeconds = UnixSeconds(NOW.0 - 24 * 3600);

/// One store: its site, rack, host, room in extents, and how it is.
type RandomStore = (u8, u8, u8, u64, u8);

fn random_fleet(stores: &[RandomStore]) -> Topology {
    let mut fleet = Topology::default();
    fleet.datacenters.extend(SITES.iter().map(|site| dc(site)));
    for (n, (site, rack, on, room, health)) in (1..).zip(stores) {
        let site = SITES[usize::from(*site)];
        // Two hosts a rack, named after it, so that a host has one rack.
        let (rack, name) = (format!("r{rack}"), format!("{site}-{rack}-{on}"));
        add_store(&mut fleet, n, (site, &rack, &name), 0);
        let place = fleet.stores.get_mut(&store(n)).unwrap();
        place.capacity_bytes = (room * ExtentSize::DEFAULT.bytes()).div_ceil(90) * 100 + 100;
        place.evacuating = *health == 3;
        place.health = match health {
            0 => Health::Gone,
            1 => Health::Silent { since: NOW },
            2 => Health::Silent { since: LONG_AGO },
            _ => Health::Up,
        };
    }
    add_link(&mut fleet, "tokyo", "osaka", 8, 50);
    add_link(&mut fleet, "osaka", "kyoto", 2, 50);
    fleet
}

fn random_policy() -> impl Strategy<Value = String> {
    let away = prop::collection::btree_map(0usize..3, 1u8..3, 0..2);
    let never = prop::collection::btree_set(0usize..3, 0..2);
    (1u8..4, 0u8..2, 0u8..2, 0u8..3, away, never).prop_map(|(copies, spread, rigor, follow, away, never)| {
        let quoted = |site: &usize| format!("\"{}\"", SITES[*site]);
        let away: Vec<String> = away
            .iter()
            .filter(|(site, _)| !never.contains(site))
            .map(|(site, n)| format!("{} = {n}", SITES[*site]))
            .collect();
        let never: Vec<String> = never.iter().map(quoted).collect();
        format!(
            "copies = {copies}\nspread = \"{}\"\nrigor = \"{}\"\nfollow = \"{}\"\naway = {{{}}}\nnever = [{}]\nhold-down = \"0s\"",
            ["host", "rack"][usize::from(spread)],
            ["strict", "prefer"][usize::from(rigor)],
            ["switch", "extend", "manual"][usize::from(follow)],
            away.join(", "),
            never.join(", "),
        )
    })
}

/// What has happened to the map before: switches of some extents to some stores, completions, ejections.
type Past = Vec<(u32, u32, Vec<u8>, u8)>;

fn random_past() -> impl Strategy<Value = Past> {
    let event = (
        0..EXTENTS,
        1..=EXTENTS,
        prop::collection::vec(0u8..12, 1..4),
        0u8..4,
    );
    prop::collection::vec(event, 0..8)
}

fn random_record(fleet: &Topology, first: &[u8], past: &Past) -> DiskRecord {
    let stores = |picks: &[u8]| -> Vec<u128> {
        let count = fleet.stores.len();
        let mut stores: Vec<u128> = picks
            .iter()
            .map(|n| usize::from(*n) % count + 1)
            .map(|n| n as u128)
            .collect();
        stores.sort_unstable();
        stores.dedup();
        stores
    };
    let mut case = Case::new(&[], "tokyo", &stores(first));
    case.record = disk_of(EXTENTS, &stores(first));
    for (begin, count, picks, kind) in past {
        let part = extents(*begin, (begin + count).min(EXTENTS));
        let change = match kind {
            0 => {
                case.complete(part);
                continue;
            }
            1 => Change::Eject {
                by: by(),
                stores: vec![store(stores(picks)[0])],
            },
            _ => {
                let stores = stores(picks).into_iter().map(store).collect();
                Change::Switch {
                    by: by(),
                    sets: vec![NewSet {
                        extents: part,
                        stores,
                    }],
                }
            }
        };
        if let Ok(record) = case.record.apply(Generation(0), &change) {
            case.record = record;
        }
    }
    case.record
}

fn random_case() -> impl Strategy<Value = Case> {
    let stores = prop::collection::vec((0u8..3, 0u8..3, 0u8..2, 0u64..40, 0u8..10), 1..12);
    let files = prop::collection::vec(random_policy(), 3);
    let first = prop::collection::vec(0u8..12, 1..4);
    (stores, files, first, random_past(), 0usize..3, 0usize..3).prop_map(
        |(stores, files, first, past, home, before)| {
            let files: Vec<(&str, &str)> = SITES
                .iter()
                .copied()
                .zip(files.iter().map(String::as_str))
                .collect();
            // A file that contradicts itself is refused before anything is planned by it.
            let files: Vec<(&str, &str)> = files
                .into_iter()
                .filter(|(site, text)| Policy::parse(dc(site), text).is_ok())
                .collect();
            let mut case = Case::new(&files, SITES[before], &[1]);
            case.fleet = random_fleet(&stores);
            case.record = random_record(&case.fleet, &first, &past);
            case.home = case.home.moved_to(&dc(SITES[home]), NOW, Duration::ZERO);
            for store in case.record.stores() {
                case.allocated.insert(store, 7 << 20);
            }
            case
        },
    )
}

/// Pins of some extents: in a site, on a store, on one besides, off one.
fn random_pins() -> impl Strategy<Value = Vec<(u32, u32, u8, u8)>> {
    prop::collection::vec((0..EXTENTS, 1..=EXTENTS, 0u8..5, 0u8..12), 0..3)
}

fn pin(case: &mut Case, pins: &[(u32, u32, u8, u8)]) {
    let count = case.fleet.stores.len() as u8;
    for (begin, length, kind, what) in pins {
        let stores = vec![store(u128::from(what % count) + 1)];
        case.pins.push(Pin {
            disk: case.record.id,
            extents: Some(extents(*begin, (begin + length).min(EXTENTS))),
            hold: match kind {
                0 => Hold::In(dc(SITES[usize::from(what % 3)])),
                1 => Hold::On(stores),
                2 => Hold::Also(stores),
                3 => Hold::Off(stores),
                _ => Hold::Without(stores),
            },
            reason: "by hand".into(),
            until: Until::Lifted,
        });
    }
}

/// The copies of each extent, its members, and what policy asks for.
fn copies(record: &DiskRecord) -> Vec<usize> {
    let of = |range: &MapRange| vec![range.history.copies(); range.extents.count() as usize];
    record.map.iter().flat_map(of).collect()
}

fn members(record: &DiskRecord) -> Vec<Vec<StoreId>> {
    let of = |range: &MapRange| {
        let mut members: Vec<StoreId> = range.history.members().collect();
        members.sort_unstable();
        vec![members; range.extents.count() as usize]
    };
    record.map.iter().flat_map(of).collect()
}

fn goals(goal: &Goal) -> Vec<(Vec<StoreId>, usize)> {
    let of = |range: &GoalRange| {
        let one = (range.stores(), usize::from(range.wanted));
        vec![one; range.extents.count() as usize]
    };
    goal.ranges.iter().flat_map(of).collect()
}

/// What the disk promises on each store counts there from now on, as the service's own sums would.
fn account(case: &mut Case) {
    let mut promised: BTreeMap<StoreId, u64> = BTreeMap::new();
    for store in members(&case.record).into_iter().flatten() {
        *promised.entry(store).or_default() += case.record.extent_size.bytes();
    }
    for (id, place) in &mut case.fleet.stores {
        place.unwritten_bytes = promised.get(id).copied().unwrap_or(0);
    }
}

fn barred(case: &Case) -> Vec<DatacenterName> {
    let homes = case.home.before.iter().chain([&case.home.datacenter]);
    homes
        .flat_map(|home| case.policies.class(home, None).never.iter().cloned())
        .collect()
}

/// Does one step and checks what may never happen, whatever the step.
fn act_and_check(case: &mut Case, action: &Action, least: &[usize]) -> Result<(), TestCaseError> {
    let before = members(&case.record);
    case.act(action);
    let after = members(&case.record);
    let barred = barred(case);
    for (extent, (now, old)) in after.iter().zip(&before).enumerate() {
        let have = copies(&case.record)[extent];
        prop_assert!(
            have >= least[extent],
            "extent {extent} has {have} copies, and had or wants {}",
            least[extent]
        );
        for new in now.iter().filter(|store| !old.contains(store)) {
            let site = case.fleet.datacenter_of(*new).unwrap();
            prop_assert!(!barred.contains(site), "a block put into {site}");
            prop_assert_eq!(
                case.fleet.stores[new].health,
                Health::Up,
                "put onto a store that is not up"
            );
            prop_assert!(
                !case.fleet.stores[new].evacuating,
                "put onto a store that is to be emptied"
            );
        }
    }
    prop_assert_eq!(case.record.check(), Ok(()));
    Ok(())
}

/// Per extent: what policy asks for, or what there is if that is less; one where more was forced off.
fn floor(case: &Case) -> Vec<usize> {
    let goal = goals(&case.goal());
    let have = copies(&case.record);
    let forced = |extent: u32| {
        case.pins.iter().any(|pin| {
            let part = extents(extent, extent + 1);
            matches!(pin.hold, Hold::Without(_)) && pin.covers(part)
        })
    };
    let least = |(extent, (_, wanted)): (usize, (Vec<StoreId>, usize))| {
        let wanted = if forced(extent as u32) { 1 } else { wanted };
        have[extent].min(wanted)
    };
    goal.into_iter().enumerate().map(least).collect()
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "home {:?}", self.home)?;
        for policy in self.policies.iter() {
            writeln!(f, "# {}\n{}", policy.datacenter, policy.default)?;
        }
        for (id, place) in &self.fleet.stores {
            let room = place.capacity_bytes / 100 * 90 / ExtentSize::DEFAULT.bytes();
            let at = &self.fleet.hosts[&place.host];
            writeln!(
                f,
                "store {} on {} in {:?}: {room}, {:?}",
                id.as_u128(),
                place.host,
                at.rack,
                place.health
            )?;
        }
        for range in &self.record.map {
            writeln!(f, "{}: {:?}", range.extents, range.history)?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_plan_leads_to_its_goal_by_safe_steps_and_then_there_is_none(
        mut case in random_case(), pins in random_pins(),
    ) {
        pin(&mut case, &pins);
        let least = floor(&case);
        // Long histories have to complete before they can change: several plans, each carried out whole.
        for _ in 0..6 {
            let plan = case.plan();
            prop_assert_eq!(&plan, &case.plan(), "the same question, the same answer");
            if plan.is_empty() {
                break;
            }
            let from = copies(&case.record).into_iter().min().unwrap();
            prop_assert_eq!(usize::from(plan.copies_now), from);
            let mut seen = from;
            for step in &plan.steps {
                act_and_check(&mut case, &step.action, &least)?;
                let now = copies(&case.record).into_iter().min().unwrap();
                prop_assert_eq!(usize::from(step.copies_after), now, "what the plan said of {:?}", step.action);
                seen = seen.min(now);
            }
            prop_assert_eq!(usize::from(plan.least_copies), seen);
            account(&mut case);
        }
        let plan = case.plan();
        prop_assert!(plan.is_empty(), "again: {:?}", plan);
        let goal: Vec<Vec<StoreId>> = goals(&case.goal()).into_iter().map(|(stores, _)| stores).collect();
        prop_assert_eq!(members(&case.record), goal);
        prop_assert!(case.record.map.iter().all(|range| range.history.is_whole()));
        prop_assert_eq!(&case.retired, &[], "what nobody needs is gone");
    }

    #[test]
    fn a_plan_may_be_left_at_any_step_for_another(
        mut case in random_case(),
        moves in prop::collection::vec((0usize..3, 1usize..4, random_pins()), 1..6),
    ) {
        for (home, steps, pins) in moves {
            case.pins.clear();
            pin(&mut case, &pins);
            case.home = case.home.moved_to(&dc(SITES[home]), NOW, Duration::ZERO);
            let least = floor(&case);
            for step in case.plan().steps.iter().take(steps) {
                act_and_check(&mut case, &step.action, &least)?;
            }
            account(&mut case);
        }
    }

    #[test]
    fn what_may_stay_stays(case in random_case()) {
        let goal = case.goal();
        let barred = barred(&case);
        for (now, (goal, wanted)) in members(&case.record).iter().zip(goals(&goal)) {
            let joins = goal.iter().filter(|store| !now.contains(store)).count();
            prop_assert!(goal.len() >= now.len().min(wanted), "a copy is given up only for another");
            prop_assert!(joins <= wanted, "no more than policy asks for");
            // Nobody joins to replace a member that could have stayed in the same place.
            let class = case.policies.class(&case.home.datacenter, None);
            if class.rigor == crate::policy::Rigor::Strict {
                continue;
            }
            for new in goal.iter().filter(|store| !now.contains(store)) {
                let site = case.fleet.datacenter_of(*new);
                let could_stay = now.iter().filter(|store| {
                    let place = &case.fleet.stores[*store];
                    let host_is_free = goal.iter().all(|other| case.fleet.stores[other].host != place.host);
                    case.fleet.datacenter_of(**store) == site
                        && !matches!(place.health, Health::Gone | Health::Silent { since: LONG_AGO })
                        && !place.evacuating
                        && !goal.contains(store)
                        && host_is_free
                });
                prop_assert_eq!(could_stay.count(), 0, "{:?} joins", new);
            }
        }
        // With a host more for each copy that policy asks for, none is missing.
        let policy = case.policies.class(&case.home.datacenter, None);
        let roomy = case.fleet.stores.values().filter(|place| {
            let site = case.fleet.hosts[&place.host].datacenter.as_ref().unwrap();
            let room = place.capacity_bytes / 100 * 90 / ExtentSize::DEFAULT.bytes();
            place.health == Health::Up && !place.evacuating && room >= u64::from(EXTENTS) && !barred.contains(site)
        });
        let hosts: std::collections::BTreeSet<&HostName> = roomy.map(|place| &place.host).collect();
        let strict = policy.rigor == crate::policy::Rigor::Strict;
        if !strict && hosts.len() >= usize::from(policy.total(2)) {
            prop_assert_eq!(&goal.shortfalls, &[]);
        }
    }

    #[test]
    fn a_store_that_is_given_up_or_emptied_has_no_copy_in_the_end(
        mut case in random_case(), which in 0u8..12, lost in any::<bool>(), ejected in any::<bool>(),
    ) {
        let count = case.fleet.stores.len() as u8;
        let store = store(u128::from(which % count) + 1);
        if ejected {
            eject(&mut case, store);
        }
        let place = case.fleet.stores.get_mut(&store).unwrap();
        match lost {
            true => place.health = Health::Gone,
            false => (place.health, place.evacuating) = (Health::Up, true),
        }
        // Copies that nobody has given up: what counts when a store is.
        let left = |case: &Case| -> Vec<usize> {
            let gone = |store| {
                let place = &case.fleet.stores[&store];
                matches!(place.health, Health::Gone | Health::Silent { since: LONG_AGO })
            };
            let of = |range: &MapRange| vec![copies_without(&range.history, &gone); range.extents.count() as usize];
            case.record.map.iter().flat_map(of).collect()
        };
        let least: Vec<usize> = left(&case).iter().zip(goals(&case.goal())).map(|(n, (_, wanted))| *(n).min(&wanted)).collect();
        for _ in 0..6 {
            let plan = case.plan();
            for step in &plan.steps {
                act_and_check(&mut case, &step.action, &vec![0; EXTENTS as usize])?;
                for (extent, (now, least)) in left(&case).iter().zip(&least).enumerate() {
                    prop_assert!(now >= least, "extent {} has {} copies left, and had or wants {}", extent, now, least);
                }
            }
            account(&mut case);
        }
        let plan = case.plan();
        prop_assert!(plan.is_empty(), "again: {:?}", plan);
        if plan.shortfalls.is_empty() && plan.awaited.is_empty() {
            prop_assert!(!case.record.stores().contains(&store), "still there: {:?}", case.record.map);
            prop_assert!(case.retired.iter().all(|retired| retired.store != store));
            let short = left(&case).iter().zip(goals(&case.goal())).any(|(left, (_, wanted))| *left < wanted);
            prop_assert!(!short, "all is repaired");
            prop_assert!(!plan.repair);
        }
    }
}

/// The writer ejects the store, if it may, and what it had is noted.
fn eject(case: &mut Case, store: StoreId) {
    let stores = vec![store];
    let Ok(record) = case
        .record
        .apply(Generation(0), &Change::Eject { by: by(), stores })
    else {
        return;
    };
    let had = case
        .record
        .map
        .iter()
        .filter(|range| range.history.0.iter().any(|entry| entry.has(store)));
    let had: Vec<Extents> = had.map(|range| range.extents).collect();
    case.record = record;
    if !had.is_empty() {
        case.retired.push(Retired {
            store,
            extents: had,
            since: NOW,
            ejected: true,
        });
    }
}
