//! A policy file: TOML, strict. Every fault is found at once, with its line, its key and what was
//! probably meant.
//!
//! ```toml
//! copies = 2                    # where the VM runs; left out: as many as the disk was created with
//! min-copies = 1                # with fewer complete copies guests wait
//! repair-after = "10m"          # a copy whose store is away is made anew after this
//! rebalance = "20%"             # between stores whose fill differs by more; or off
//! spread = "rack"               # host | rack
//! rigor = "prefer"              # strict | prefer
//! away = { osaka = 1 }          # and kept elsewhere, whatever happens
//! follow = "switch"             # switch | extend | manual
//! hold-down = "30s"
//! drop = "when-complete"        # when-complete | after 30m | manual
//! never = ["frankfurt"]
//! prepare = "manual"            # manual | standby
//!
//! [copy]
//! limit = "100MiB/s"            # into one datacenter; or unlimited
//! to = { osaka = "20MiB/s" }    # single destinations
//! windows = ["22:00-06:00"]     # in UTC; left out: always
//!
//! [class.database]              # any of the keys above; what it leaves out is as above
//! copies = 3
//! ```

use super::class::{Class, Copying, DropWhen, Follow, Prepare, Rigor, Spread};
use super::units::{Window, parse_duration, parse_rate};
use super::{ClassName, Policy, nearest};
use crate::choose::MAX_COPIES;
use replicator::words::DatacenterName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A policy is a page; more than this is no policy.
pub const MAX_BYTES: usize = 64 << 10;
/// More faults than this are not listed.
const MAX_FAULTS: usize = 20;
/// The longest time that a file may ask to wait.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Stores that differ by less are as good as equal; ones that differ by more than all do not exist.
const REBALANCE_PERCENT: RangeInclusive<u8> = 5..=100;

const CLASS_KEYS: [&str; 13] = [
    "copies",
    "min-copies",
    "repair-after",
    "rebalance",
    "spread",
    "rigor",
    "away",
    "follow",
    "hold-down",
    "drop",
    "never",
    "prepare",
    "copy",
];
const COPY_KEYS: [&str; 3] = ["limit", "to", "windows"];

/// One thing that is wrong in a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// With its tables: `class.database.copies`. Empty: the file as a whole.
    pub key: String,
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { line, key, why } = self;
        if key.is_empty() {
            write!(f, "line {line}: {why}")
        } else {
            write!(f, "line {line}: {key}: {why}")
        }
    }
}

/// Why a file is no policy: at least one fault, in the order of the lines.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyError {
    pub datacenter: DatacenterName,
    pub faults: Vec<Fault>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy of {} is wrong", self.datacenter)?;
        self.faults
            .iter()
            .try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// What `text` says about `datacenter`. Whether the fleet can keep it, [`super::check`] says.
    pub fn parse(datacenter: DatacenterName, text: &str) -> Result<Policy, PolicyError> {
        let mut reader = Reader {
            text,
            datacenter: &datacenter,
            faults: Vec::new(),
        };
        let policy = reader.file();
        let mut faults = reader.faults;
        faults.sort_by_key(|fault| fault.line);
        faults.truncate(MAX_FAULTS);
        if faults.is_empty() {
            let (default, classes) = policy;
            Ok(Policy {
                datacenter,
                default,
                classes,
            })
        } else {
            Err(PolicyError { datacenter, faults })
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    datacenter: &'a DatacenterName,
    faults: Vec<Fault>,
}

/// A value with the key that it stands at.
struct At<'a> {
    key: String,
    span: Range<usize>,
    value: &'a DeValue<'a>,
}

impl<'a> Reader<'a> {
    fn file(&mut self) -> (Class, BTreeMap<ClassName, Class>) {
        if self.text.len() > MAX_BYTES {
            let why = format!("longer than {MAX_BYTES} bytes");
            self.fault(0..0, "", why);
            return Default::default();
        }
        let table = match DeTable::parse(self.text) {
            Ok(table) => table,
            Err(error) => {
                self.fault(error.span().unwrap_or(0..0), "", error.message());
                return Default::default();
            }
        };
        let (root, mut classes) = (table.get_ref(), BTreeMap::new());
        let known: Vec<&str> = CLASS_KEYS.iter().copied().chain(["class"]).collect();
        let default = self.class(root, "", &known, Class::default());
        if let Some(at) = find(root, "", "class")
            && let Some(tables) = self.table(&at)
        {
            for (name, value) in tables {
                let key = format!("class.{}", name.get_ref());
                let at = at_key(key, value);
                match ClassName::new(name.get_ref().as_ref()) {
                    Err(why) => self.fault(name.span(), &at.key, why),
                    Ok(name) => {
                        if let Some(table) = self.table(&at) {
                            let class = self.class(table, &at.key, &CLASS_KEYS, default.clone());
                            classes.insert(name, class);
                        }
                    }
                }
            }
        }
        (default, classes)
    }

    /// `base` with what `table` says in its place.
    fn class(&mut self, table: &DeTable, path: &str, known: &[&str], base: Class) -> Class {
        self.unknown(table, path, known);
        let mut class = base;
        if let Some(at) = find(table, path, "copies") {
            class.copies = self.copies(&at).or(class.copies);
        }
        if let Some(at) = find(table, path, "min-copies") {
            class.min_copies = self.copies(&at).unwrap_or(class.min_copies);
        }
        if let Some(at) = find(table, path, "repair-after") {
            class.repair_after = self.wait(&at).unwrap_or(class.repair_after);
        }
        if let Some(at) = find(table, path, "rebalance") {
            class.rebalance = self.rebalance(&at).unwrap_or(class.rebalance);
        }
        if let Some(at) = find(table, path, "spread") {
            let known = [("host", Spread::Host), ("rack", Spread::Rack)];
            class.spread = self.one_of(&at, &known).unwrap_or(class.spread);
        }
        if let Some(at) = find(table, path, "rigor") {
            let known = [("strict", Rigor::Strict), ("prefer", Rigor::Prefer)];
            class.rigor = self.one_of(&at, &known).unwrap_or(class.rigor);
        }
        if let Some(at) = find(table, path, "away") {
            class.away = self.away(&at);
        }
        if let Some(at) = find(table, path, "follow") {
            let known = [
                ("switch", Follow::Switch),
                ("extend", Follow::Extend),
                ("manual", Follow::Manual),
            ];
            class.follow = self.one_of(&at, &known).unwrap_or(class.follow);
        }
        if let Some(at) = find(table, path, "hold-down") {
            class.hold_down = self.wait(&at).unwrap_or(class.hold_down);
        }
        if let Some(at) = find(table, path, "drop") {
            class.drop = self.drop_when(&at).unwrap_or(class.drop);
        }
        if let Some(at) = find(table, path, "never") {
            class.never = self.never(&at);
        }
        if let Some(at) = find(table, path, "prepare") {
            let known = [("manual", Prepare::Manual), ("standby", Prepare::Standby)];
            class.prepare = self.one_of(&at, &known).unwrap_or(class.prepare);
        }
        if let Some(at) = find(table, path, "copy")
            && let Some(table) = self.table(&at)
        {
            class.copy = self.copying(table, &at.key, class.copy);
        }
        self.contradictions(table, path, &class);
        class
    }

    fn copying(&mut self, table: &DeTable, path: &str, base: Copying) -> Copying {
        self.unknown(table, path, &COPY_KEYS);
        let mut copying = base;
        if let Some(at) = find(table, path, "limit") {
            let rate = self.rate(&at);
            copying.limit = rate.unwrap_or(copying.limit);
        }
        if let Some(at) = find(table, path, "to") {
            copying.to = self.by_datacenter(&at, Reader::rate);
        }
        if let Some(at) = find(table, path, "windows") {
            copying.windows = self
                .list(&at)
                .iter()
                .filter_map(|at| {
                    let text = self.text(at)?;
                    self.or_fault(at, text.parse::<Window>())
                })
                .collect();
        }
        copying
    }

    /// What the file alone shows that it cannot be kept.
    fn contradictions(&mut self, table: &DeTable, path: &str, class: &Class) {
        let span = |key: &str| find(table, path, key).map_or(0..0, |at| at.span);
        let both: Vec<&str> = class
            .away
            .keys()
            .filter(|dc| class.never.contains(*dc))
            .map(DatacenterName::as_str)
            .collect();
        if let [datacenter, ..] = both[..] {
            let key = if find(table, path, "away").is_some() {
                "away"
            } else {
                "never"
            };
            let why = format!(
                "{datacenter} is to keep a copy and is in `never`; residency comes first, so take it out of one of them"
            );
            self.fault(span(key), &join(path, key), why);
        }
        let total = class.total(1);
        if total > MAX_COPIES {
            let key = if find(table, path, "away").is_some() {
                "away"
            } else {
                "copies"
            };
            let why = format!("{total} copies in all, and at most {MAX_COPIES} are possible");
            self.fault(span(key), &join(path, key), why);
        }
        // Without `copies` each disk has its own number, which nobody knows here.
        if class.copies.is_some() && class.min_copies > total {
            let keys = ["min-copies", "copies", "away"].into_iter();
            let key = { keys }.find(|key| find(table, path, key).is_some());
            let key = key.unwrap_or("min-copies");
            let why = format!(
                "min-copies = {}, and there are {total} copies in all: guests would always wait; at most {total}",
                class.min_copies
            );
            self.fault(span(key), &join(path, key), why);
        }
    }

    fn wait(&mut self, at: &At) -> Option<Duration> {
        let text = self.text(at)?;
        self.or_fault(at, wait(text))
    }

    fn rebalance(&mut self, at: &At) -> Option<Option<u8>> {
        let text = self.text(at)?;
        if text == "off" {
            return Some(None);
        }
        let percent = text.strip_suffix('%').and_then(|n| n.trim().parse().ok());
        let percent = percent.filter(|percent| REBALANCE_PERCENT.contains(percent));
        if percent.is_none() {
            let why = format!(
                "has to be \"off\", or how far two stores may differ: \"{}%\" to \"{}%\"",
                REBALANCE_PERCENT.start(),
                REBALANCE_PERCENT.end()
            );
            self.fault(at.span.clone(), &at.key, why);
        }
        percent.map(Some)
    }

    fn copies(&mut self, at: &At) -> Option<u8> {
        let number = at.value.as_integer();
        let number = number.and_then(|n| u8::from_str_radix(n.as_str(), n.radix()).ok());
        let number = number.filter(|n| (1..=MAX_COPIES).contains(n));
        if number.is_none() {
            let why = format!("has to be a whole number from 1 to {MAX_COPIES}");
            self.fault(at.span.clone(), &at.key, why);
        }
        number
    }

    fn away(&mut self, at: &At) -> BTreeMap<DatacenterName, u8> {
        let away = self.by_datacenter(at, Reader::copies);
        if away.contains_key(self.datacenter) {
            let why = format!(
                "{} is this policy's own datacenter; its copies are `copies`",
                self.datacenter
            );
            self.fault(at.span.clone(), &at.key, why);
        }
        away
    }

    fn never(&mut self, at: &At) -> BTreeSet<DatacenterName> {
        let names = self.list(at);
        names
            .iter()
            .filter_map(|at| {
                let name = self.text(at)?;
                self.or_fault(
                    at,
                    DatacenterName::new(name).map_err(|error| error.to_string()),
                )
            })
            .collect()
    }

    fn drop_when(&mut self, at: &At) -> Option<DropWhen> {
        let text = self.text(at)?;
        match text {
            "when-complete" => return Some(DropWhen::Complete),
            "manual" => return Some(DropWhen::Manual),
            _ => {}
        }
        let time = text.strip_prefix("after ").unwrap_or(text);
        if time.starts_with(|c: char| c.is_ascii_digit()) {
            return self.or_fault(at, wait(time)).map(DropWhen::After);
        }
        let known = ["when-complete", "after 30m", "manual"];
        self.fault(at.span.clone(), &at.key, not_one_of(text, &known));
        None
    }

    fn rate(&mut self, at: &At) -> Option<Option<u64>> {
        let text = self.text(at)?;
        self.or_fault(at, parse_rate(text))
    }

    fn by_datacenter<T>(
        &mut self,
        at: &At,
        mut read: impl FnMut(&mut Self, &At) -> Option<T>,
    ) -> BTreeMap<DatacenterName, T> {
        let mut all = BTreeMap::new();
        for (name, value) in self.table(at).into_iter().flatten() {
            let at = at_key(format!("{}.{}", at.key, name.get_ref()), value);
            match DatacenterName::new(name.get_ref().as_ref()) {
                Err(error) => self.fault(name.span(), &at.key, error.to_string()),
                Ok(name) => all.extend(read(self, &at).map(|value| (name, value))),
            }
        }
        all
    }

    fn one_of<T: Copy>(&mut self, at: &At, known: &[(&str, T)]) -> Option<T> {
        let text = self.text(at)?;
        let found = known.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.fault(at.span.clone(), &at.key, not_one_of(text, &names));
        }
        found.map(|(_, value)| *value)
    }

    fn text<'v>(&mut self, at: &At<'v>) -> Option<&'v str> {
        let text = at.value.as_str();
        if text.is_none() {
            self.wrong_type(at, "a text in quotes");
        }
        text
    }

    fn table<'v>(&mut self, at: &At<'v>) -> Option<&'v DeTable<'v>> {
        let table = at.value.as_table();
        if table.is_none() {
            self.wrong_type(at, "a table");
        }
        table
    }

    fn list<'v>(&mut self, at: &At<'v>) -> Vec<At<'v>> {
        let Some(list) = at.value.as_array() else {
            self.wrong_type(at, "a list in [brackets]");
            return Vec::new();
        };
        list.iter()
            .map(|value| at_key(at.key.clone(), value))
            .collect()
    }

    fn wrong_type(&mut self, at: &At, wanted: &str) {
        let why = format!("has to be {wanted}, and is of type {}", at.value.type_str());
        self.fault(at.span.clone(), &at.key, why);
    }

    fn unknown(&mut self, table: &DeTable, path: &str, known: &[&str]) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let why = match nearest(name, known.iter().copied()) {
                    Some(meant) => format!("unknown key; did you mean `{meant}`?"),
                    None => format!("unknown key; there are {}", known.join(", ")),
                };
                self.fault(key.span(), &join(path, name), why);
            }
        }
    }

    fn or_fault<T>(&mut self, at: &At, read: Result<T, String>) -> Option<T> {
        read.map_err(|why| self.fault(at.span.clone(), &at.key, why))
            .ok()
    }

    fn fault(&mut self, span: Range<usize>, key: &str, why: impl Into<String>) {
        let before = self.text.as_bytes().iter().take(span.start);
        self.faults.push(Fault {
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
            key: key.chars().take(200).collect(),
            why: why.into(),
        });
    }
}

fn find<'v>(table: &'v DeTable<'v>, path: &str, key: &str) -> Option<At<'v>> {
    let value = table.get(key)?;
    Some(at_key(join(path, key), value))
}

fn at_key<'v>(key: String, value: &'v Spanned<DeValue<'v>>) -> At<'v> {
    At {
        key,
        span: value.span(),
        value: value.get_ref(),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|time| {
        if time <= MAX_WAIT {
            Ok(time)
        } else {
            Err(format!("{text:?} is longer than a year"))
        }
    })
}

fn not_one_of(text: &str, known: &[&str]) -> String {
    let short: String = text.chars().take(80).collect();
    match nearest(text, known.iter().copied()) {
        Some(meant) => format!("{short:?} is not known; did you mean {meant:?}?"),
        None => format!("{short:?} is not known; use {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy, Vec<String>> {
        Policy::parse(DatacenterName::new("tokyo").unwrap(), text)
            .map_err(|error| error.faults.iter().map(ToString::to_string).collect())
    }

    fn dc(name: &str) -> DatacenterName {
        DatacenterName::new(name).unwrap()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let policy = read("").unwrap();
        assert_eq!(policy, Policy::unwritten(dc("tokyo")));
        assert_eq!(policy.default.copies_for(3), 3, "the disk's own");
    }

    #[test]
    fn every_key_is_read_and_a_class_overrides_what_it_names() {
        let policy = read(
            r#"
            copies = 2
            min-copies = 2
            repair-after = "90s"
            rebalance = "35%"
            spread = "host"
            rigor = "strict"
            away = { osaka = 1 }
            follow = "extend"
            hold-down = "5s"
            drop = "after 30m"
            never = ["frankfurt"]
            prepare = "standby"
            [copy]
            limit = "50MiB/s"
            to = { osaka = "unlimited" }
            windows = ["22:00-06:00"]
            [class.scratch]
            copies = 1
            min-copies = 1
            rebalance = "off"
            away = {}
            drop = "10s"
            copy.limit = "1GiB/s"
            "#,
        )
        .unwrap();
        let class = &policy.default;
        assert_eq!((class.copies, class.min_copies), (Some(2), 2));
        assert_eq!(class.repair_after, Duration::from_secs(90));
        assert_eq!(class.rebalance, Some(35));
        assert_eq!((class.min_copies_for(3), class.total(3)), (2, 3));
        assert_eq!((class.spread, class.rigor), (Spread::Host, Rigor::Strict));
        assert_eq!(class.away, BTreeMap::from([(dc("osaka"), 1)]));
        assert_eq!(class.follow, Follow::Extend);
        assert_eq!(class.hold_down, Duration::from_secs(5));
        assert_eq!(class.drop, DropWhen::After(Duration::from_secs(1800)));
        assert_eq!(class.never, BTreeSet::from([dc("frankfurt")]));
        assert_eq!(class.prepare, Prepare::Standby);
        assert_eq!(class.copy.limit_to(&dc("osaka")), None);
        assert_eq!(class.copy.limit_to(&dc("kyoto")), Some(50 << 20));
        let scratch = policy.class(Some(&ClassName::new("scratch").unwrap()));
        assert_eq!((scratch.copies, scratch.total(4)), (Some(1), 1));
        assert_eq!((scratch.min_copies, scratch.rebalance), (1, None));
        assert_eq!(scratch.drop, DropWhen::After(Duration::from_secs(10)));
        assert_eq!(scratch.copy.limit, Some(1 << 30));
        assert_eq!(scratch.copy.windows, class.copy.windows);
        assert_eq!(scratch.never, class.never);
        let unknown = policy.class(Some(&ClassName::new("other").unwrap()));
        assert_eq!(unknown, class, "a class that the file does not have");
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        let text = "copies = 3\naway = { osaka = 2 }\ndrop = \"45m\"\n[copy]\nto = { osaka = \"3MB/s\" }\nwindows = [\"01:00-02:00\", \"23:30-00:10\"]";
        let policy = read(text).unwrap();
        assert_eq!(
            read(&policy.default.to_string()).unwrap().default,
            policy.default
        );
        let plain = Class::default();
        assert_eq!(read(&plain.to_string()).unwrap().default, plain);
    }

    #[test]
    fn an_unknown_key_names_the_right_one_and_its_line() {
        let faults =
            read("copies = 2\ncopeis = 3\n[class.db]\nfolow = \"switch\"\n[copy]\nwindow = []\n")
                .unwrap_err();
        assert_eq!(
            faults,
            [
                "line 2: copeis: unknown key; did you mean `copies`?",
                "line 4: class.db.folow: unknown key; did you mean `follow`?",
                "line 6: copy.window: unknown key; did you mean `windows`?",
            ]
        );
        let faults = read("zzz = 1").unwrap_err();
        assert!(
            faults[0].contains("there are copies, min-copies"),
            "{faults:?}"
        );
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_with_the_reason() {
        for (text, says) in [
            ("copies = 0", "from 1 to 8"),
            ("copies = \"2\"", "whole number"),
            ("copies = 300", "from 1 to 8"),
            ("min-copies = 0", "from 1 to 8"),
            ("copies = 2\nmin-copies = 3", "at most 2"),
            (
                "copies = 2\nmin-copies = 2\n[class.db]\ncopies = 1",
                "at most 1",
            ),
            ("min-copy = 1", "did you mean `min-copies`"),
            ("repair-after = \"soon\"", "is no time"),
            ("repair-after = 10", "text in quotes"),
            ("rebalance = \"3%\"", "5%"),
            ("rebalance = \"manual\"", "\"off\""),
            ("follow = \"swich\"", "did you mean \"switch\""),
            ("follow = 1", "text in quotes, and is of type integer"),
            ("away = [\"osaka\"]", "has to be a table"),
            ("away = { tokyo = 1 }", "own datacenter"),
            ("away = { Osaka = 1 }", "datacenter name"),
            ("away = { osaka = 0 }", "from 1 to 8"),
            ("copies = 6\naway = { osaka = 3 }", "at most 8"),
            (
                "away = { osaka = 1 }\nnever = [\"osaka\"]",
                "residency comes first",
            ),
            ("never = \"osaka\"", "list in [brackets]"),
            ("drop = \"never\"", "is not known"),
            ("drop = \"after soon\"", "is not known"),
            ("drop = \"after 3 moons\"", "is no time"),
            ("hold-down = \"400d\"", "longer than a year"),
            ("copy = { limit = \"0B/s\" }", "copy nothing"),
            ("copy.to.osaka = \"fast\"", "is no rate"),
            ("copy.windows = [\"9-5\"]", "no time of day"),
            ("class.DB = {}", "class name"),
            ("class = 3", "a table"),
            ("copies = ", "line 1"),
            ("copies = 2\ncopies = 3", "line 2"),
        ] {
            let faults = read(text).unwrap_err();
            assert!(
                faults.iter().any(|fault| fault.contains(says)),
                "{text}: {faults:?}"
            );
        }
    }

    #[test]
    fn no_text_is_a_panic() {
        for text in [
            "\0",
            "[",
            "a.b.c = 1",
            "[[class]]",
            "class.a.b.c = 1",
            "\u{feff}copies = 1",
            "never = [[1]]",
            "copy = 1",
            "away = { a = {} }",
        ] {
            let _ = read(text);
        }
        assert!(read(&"#".repeat(MAX_BYTES + 1)).is_err());
        assert!(read(&"x=1\n".repeat(9)).unwrap_err().len() <= MAX_FAULTS);
    }

    proptest::proptest! {
        #[test]
        fn nor_is_any_mixture_of_what_policies_are_made_of(
            words in proptest::collection::vec(0usize..24, 0..40),
        ) {
            let made_of = [
                "copies", "away", "never", "copy", "to", "windows", "drop", "class", "db", "osaka",
                "=", "\n", "[", "]", "{", "}", ".", ",", "\"", "\"30m\"", "2", "\"22:00-06:00\"",
                "\"1GiB/s\"", "\u{1F4BE}",
            ];
            let text: String = words.iter().map(|word| made_of[*word]).collect();
            if let Err(faults) = read(&text) {
                proptest::prop_assert!(!faults.is_empty());
            }
        }
    }
}
