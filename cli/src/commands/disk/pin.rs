//! `ukai disk pin`, `pins`, `unpin` and `class`: what is wished of one single disk.

use super::named_range;
use crate::exit::{Code, Failure};
use crate::operator::{Connection, Service};
use crate::output::{Bytes, Output, table};
use crate::places::{Places, SaidStore};
use placement_service::api::{AddPin, Disk, LiftPins, PolicyView, SetClass};
use placement_service::policy::{ClassName, Hold, Pin, UnixSeconds, Until};
use replicator::words::{DatacenterName, DiskName, StoreId};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Hold a disk's copies where you want them, whatever its VM does.
///
/// A pin comes before where the VM runs, never before what residency forbids or durability asks for.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk pin web1 --in osaka --reason 'tokyo is being rebuilt' --expires 7d\n  ukai disk pin web1 --off tokyo-2 --reason 'its media are old'\n  ukai disk pin web1 --also osaka-1 --range 0..10G --reason 'a warm start there' --expires 2027-01-01"
)]
pub struct PinArgs {
    disk: DiskName,

    #[command(flatten)]
    hold: SaidHold,

    /// Only these bytes; whole extents are pinned.
    #[arg(long, value_name = "FIRST..END")]
    range: Option<Bytes>,

    /// Why, for those who come later.
    #[arg(long)]
    reason: String,

    /// When it ends: after a time (7d, 12h), or at a date (2027-01-01, 2027-01-01T06:00:00Z) [default: when lifted].
    #[arg(long, value_parser = parse_end)]
    expires: Option<UnixSeconds>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct SaidHold {
    /// The copies stand in this datacenter.
    #[arg(long, value_name = "DATACENTER")]
    r#in: Option<DatacenterName>,

    /// The copies stand on these stores (hosts or ids).
    #[arg(long, value_name = "STORE", value_delimiter = ',')]
    on: Option<Vec<SaidStore>>,

    /// These stores have copies besides those that policy asks for.
    #[arg(long, value_name = "STORE", value_delimiter = ',')]
    also: Option<Vec<SaidStore>>,

    /// These stores have none, as soon as others have them.
    #[arg(long, value_name = "STORE", value_delimiter = ',')]
    off: Option<Vec<SaidStore>>,
}

/// Lift a disk's pins: policy decides again.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ukai disk unpin web1\n  ukai disk unpin web1 --pin 2\n  ukai disk unpin web1 --all"
)]
pub struct UnpinArgs {
    disk: DiskName,

    /// Which one, as `ukai disk pins` numbers them; needed when it has several.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pin: Option<u64>,

    /// All of them.
    #[arg(long, conflicts_with = "pin")]
    all: bool,
}

/// Put a disk under a named class of its datacenter's policy, or under the default one.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ukai disk class web1 database\n  ukai disk class web1")]
pub struct ClassArgs {
    disk: DiskName,

    /// A class that policy files name [default: none, so that their default class governs].
    class: Option<ClassName>,
}

pub fn pin(args: PinArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let places = Places::of(&service)?;
    let request = AddPin {
        hold: args.hold.resolve(&places)?,
        range: named_range(args.range, &args.disk, &service)?,
        reason: args.reason,
        until: args.expires.map_or(Until::Lifted, Until::Time),
    };
    let pins: Vec<Pin> = service.post(&path(&args.disk), &request)?;
    show(&args.disk, &pins, &places, output);
    Ok(())
}

pub fn list(disk: &DiskName, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let pins: Vec<Pin> = service.get(&path(disk))?;
    show(disk, &pins, &Places::of(&service)?, output);
    Ok(())
}

pub fn unpin(args: UnpinArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let request = LiftPins {
        pin: which(&args, &service)?,
    };
    let pins: Vec<Pin> = service.delete_of(&path(&args.disk), &request)?;
    show(&args.disk, &pins, &Places::of(&service)?, output);
    Ok(())
}

pub fn class(args: ClassArgs, connection: &Connection, output: Output) -> anyhow::Result<()> {
    let service = connection.service()?;
    let request = SetClass { class: args.class };
    let disk: Disk = service.put(&format!("/v1/disks/{}/class", args.disk), &request)?;
    let policy: PolicyView = service.get(&format!("/v1/policies/{}", disk.home))?;
    output.show(&disk, |disk| classed(disk, &policy));
    Ok(())
}

/// Which class governs; that its datacenter's policy has none of that name, if so.
fn classed(disk: &Disk, policy: &PolicyView) -> String {
    let Disk { name, home, .. } = disk;
    let Some(class) = &disk.class else {
        return format!("{name} is governed by the default class of the policy of {home}");
    };
    let known: Vec<&str> = policy
        .classes
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    if known.contains(&class.as_str()) {
        return format!("{name} is governed by class {class} of the policy of {home}");
    }
    let known = match known.is_empty() {
        true => "it names none".to_owned(),
        false => format!("it has {}", known.join(", ")),
    };
    format!(
        "{name} is of class {class}\nnote: the policy of {home} has no class {class} ({known}): its default class governs until it has"
    )
}

/// The place in the list of the pin to lift; none: all.
fn which(args: &UnpinArgs, service: &Service) -> anyhow::Result<Option<usize>> {
    if args.all {
        return Ok(None);
    }
    let pins: Vec<Pin> = service.get(&path(&args.disk))?;
    Ok(Some(chosen(args.pin, pins.len(), &args.disk)?))
}

/// Which of `count` pins is meant: the one with this number, or the only one.
fn chosen(number: Option<u64>, count: usize, disk: &DiskName) -> Result<usize, Failure> {
    let numbered = format!("`ukai disk pins {disk}` numbers them");
    match (number, count) {
        (_, 0) => Err(Failure::new(
            Code::NotFound,
            format!("{disk} has no pin to lift"),
        )),
        (Some(number), count) => {
            let pin = usize::try_from(number - 1).ok();
            pin.filter(|pin| *pin < count).ok_or_else(|| {
                Failure::new(Code::NotFound, format!("{disk} has no pin {number}"))
                    .because(format!("it has {count}"))
                    .try_next(numbered)
            })
        }
        (None, 1) => Ok(0),
        (None, count) => Err(
            Failure::new(Code::Refused, format!("{disk} has {count} pins"))
                .because("it was not said which one is meant")
                .try_next(format!("{numbered}; --pin lifts one, --all lifts all")),
        ),
    }
}

fn path(disk: &DiskName) -> String {
    format!("/v1/disks/{disk}/pins")
}

fn show(disk: &DiskName, pins: &Vec<Pin>, places: &Places, output: Output) {
    output.show(pins, |pins| describe(disk, pins, places));
}

fn describe(disk: &DiskName, pins: &[Pin], places: &Places) -> String {
    if pins.is_empty() {
        return format!("{disk} has no pins: policy decides");
    }
    let rows = pins.iter().enumerate().map(|(i, pin)| {
        [
            (i + 1).to_string(),
            hold(&pin.hold, places),
            pin.extents
                .map_or("all".into(), |extents| extents.to_string()),
            pin.until.to_string(),
            places.told(&pin.reason),
        ]
    });
    table(["PIN", "COPIES STAND", "EXTENTS", "HOLDS", "REASON"], rows)
}

fn hold(hold: &Hold, places: &Places) -> String {
    match hold {
        Hold::In(datacenter) => format!("in {datacenter}"),
        Hold::On(stores) => format!("on {}", places.names(stores)),
        Hold::Also(stores) => format!("on {} besides", places.names(stores)),
        Hold::Off(stores) => format!("not on {}", places.names(stores)),
        Hold::Without(stores) => {
            format!("not on {}, with or without another", places.names(stores))
        }
    }
}

impl SaidHold {
    fn resolve(&self, places: &Places) -> Result<Hold, Failure> {
        let stores = |said: &[SaidStore]| -> Result<Vec<StoreId>, Failure> {
            said.iter().map(|store| places.find(store)).collect()
        };
        match (&self.r#in, &self.on, &self.also, &self.off) {
            (Some(datacenter), ..) => Ok(Hold::In(datacenter.clone())),
            (_, Some(on), ..) => Ok(Hold::On(stores(on)?)),
            (_, _, Some(also), _) => Ok(Hold::Also(stores(also)?)),
            (.., Some(off)) => Ok(Hold::Off(stores(off)?)),
            (None, None, None, None) => unreachable!("clap requires one of them"),
        }
    }
}

fn parse_end(text: &str) -> Result<UnixSeconds, String> {
    parse_end_from(text, SystemTime::now())
}

fn parse_end_from(text: &str, now: SystemTime) -> Result<UnixSeconds, String> {
    let end = match humantime::parse_duration(text) {
        Ok(time) => now.checked_add(time),
        Err(_) => {
            let day = (text.len() == 10).then(|| format!("{text} 00:00:00"));
            let at = humantime::parse_rfc3339_weak(day.as_deref().unwrap_or(text));
            at.ok()
        }
    };
    let since = end.and_then(|end| end.duration_since(UNIX_EPOCH).ok());
    let since = since.ok_or_else(|| {
        format!("{text:?} is neither a time (7d, 12h) nor a date (2027-01-01, in UTC)")
    })?;
    match now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO) {
        now if since <= now => Err(format!("{text} is over already")),
        _ => Ok(UnixSeconds(since.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::tests::{places, store};
    use replicator::words::{DiskId, Extent, Extents};

    #[test]
    fn pins_are_numbered_with_reason_and_end() {
        let pin = |hold, extents, until| Pin {
            disk: DiskId::from_u128(1),
            extents,
            hold,
            reason: "rebuilt".into(),
            until,
        };
        let some = Some(Extents::new(Extent(0), Extent(8)));
        let pins = [
            pin(
                Hold::In(DatacenterName::new("osaka").unwrap()),
                None,
                Until::Lifted,
            ),
            pin(
                Hold::Off(vec![store(2)]),
                some,
                Until::Time(UnixSeconds(1_795_298_400)),
            ),
        ];
        let disk = DiskName::new("web1").unwrap();
        assert_eq!(
            describe(&disk, &pins, &places()),
            "PIN  COPIES STAND    EXTENTS  HOLDS                       REASON
1    in osaka        all      until it is lifted          rebuilt
2    not on tokyo-2  0..8     until 2026-11-21 22:00 UTC  rebuilt"
        );
        assert!(describe(&disk, &[], &places()).contains("policy decides"));
    }

    #[test]
    fn a_class_that_no_file_names_is_said() {
        let mut web1 = crate::commands::disk::tests::disk("web1");
        let policy = PolicyView {
            datacenter: web1.home.clone(),
            text: None,
            applied: None,
            applied_by: None,
            default: String::new(),
            classes: vec![("database".parse().unwrap(), String::new())],
            at_once: 4,
            disks: 1,
        };
        web1.class = Some("database".parse().unwrap());
        assert!(classed(&web1, &policy).ends_with("by class database of the policy of tokyo"));
        web1.class = Some("databse".parse().unwrap());
        let said = classed(&web1, &policy);
        assert!(
            said.contains("no class databse (it has database)"),
            "{said}"
        );
    }

    #[test]
    fn the_only_pin_needs_no_number() {
        let disk = DiskName::new("web1").unwrap();
        let chosen = |number, count| chosen(number, count, &disk).map_err(|fault| fault.code);
        assert_eq!(chosen(None, 1), Ok(0));
        assert_eq!(chosen(Some(2), 2), Ok(1));
        assert_eq!(chosen(None, 2), Err(Code::Refused));
        assert_eq!(chosen(Some(3), 2), Err(Code::NotFound));
        assert_eq!(chosen(None, 0), Err(Code::NotFound));
    }

    #[test]
    fn an_end_is_a_time_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_298_400);
        let end = |text| parse_end_from(text, now).map(|at| at.0);
        assert_eq!(end("12h"), Ok(1_795_298_400 + 12 * 3600));
        assert_eq!(end("2027-01-01"), Ok(1_798_761_600));
        assert_eq!(end("2027-01-01T06:00:00Z"), Ok(1_798_783_200));
        assert!(end("2020-01-01").unwrap_err().contains("over already"));
        assert!(end("soon").is_err());
    }
}
