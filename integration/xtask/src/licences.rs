//! Under which licences our dependencies come: only those that we have looked at.
//!
//! Advisories (RUSTSEC) need a database that is fetched; this does without the network, so it leaves them to
//! whoever builds a release (`cargo audit`, `cargo deny check advisories`).

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Permissive ones that our dependencies come under.
const ALLOWED: [&str; 9] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages with a licence that is not allowed, each with what it says.
fn not_allowed(metadata: &Value) -> Result<BTreeMap<String, String>> {
    let packages = metadata["packages"].as_array().context("packages")?;
    let mut found = BTreeMap::new();
    for package in packages {
        let name = format!("{} {}", package["name"], package["version"]).replace('"', "");
        let licence = package["license"].as_str().unwrap_or("none said");
        if !is_allowed(licence) {
            found.insert(name, licence.to_owned());
        }
    }
    Ok(found)
}

/// Of an SPDX expression: some way to read it names allowed licences only. `/` is an old `OR`.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let plain = expression.trim();
    if let Some(inner) = outer_parentheses(plain) {
        return is_allowed(inner);
    }
    if let Some((left, right)) = split(plain, " AND ") {
        return is_allowed(left) && is_allowed(right);
    }
    if let Some((left, right)) = split(plain, " OR ") {
        return is_allowed(left) || is_allowed(right);
    }
    ALLOWED.contains(&plain)
}

/// What is inside, if one pair of parentheses holds all of it.
fn outer_parentheses(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0;
    for character in inner.chars() {
        match character {
            '(' => depth += 1,
            ')' if depth == 0 => return None,
            ')' => depth -= 1,
            _ => {}
        }
    }
    Some(inner)
}

/// At the first `word` outside of parentheses. AND binds tighter than OR; none of our packages mixes
/// the two without parentheses, and one that did would only be judged more strictly.
fn split<'a>(text: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && text[at..].starts_with(word) => {
                return Some((&text[..at], &text[at + word.len()..]));
            }
            _ => {}
        }
    }
    None
}

#[test]
fn expressions_are_understood() {
    for good in [
        "MIT",
        "MIT/Apache-2.0",
        "Apache-2.0 OR GPL-3.0",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
    ] {
        assert!(is_allowed(good), "{good}");
    }
    for bad in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "none said",
        "",
        "(GPL-2.0 OR AGPL-3.0)",
    ] {
        assert!(!is_allowed(bad), "{bad}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_we_have_looked_at() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let answer = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        // What is only built elsewhere is not here.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .output()?;
    let said = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success(), "cargo metadata: {said}");
    let found = not_allowed(&serde_json::from_slice(&answer.stdout)?)?;
    ensure!(
        found.is_empty(),
        "licences that nobody has looked at: {found:#?}"
    );
    Ok(())
}

/// They are built with a lock file of their own, and are part of nothing that is shipped. arbitrary: MIT OR Apache-2.0;
/// libfuzzer-sys: (MIT OR Apache-2.0) AND NCSA, which is LLVM's former, permissive one.
#[test]
fn the_fuzzers_need_two_packages_more() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let packages = |lock: &str| -> Result<Vec<String>> {
        let text = std::fs::read_to_string(root.join(lock))?;
        let names = text.lines().filter_map(|line| line.strip_prefix("name = "));
        Ok(names.map(|name| name.replace('"', "")).collect())
    };
    let ours = packages("Cargo.lock")?;
    let mut more = packages("integration/fuzz/Cargo.lock")?;
    more.retain(|name| !ours.contains(name));
    assert_eq!(more, ["arbitrary", "fuzz", "libfuzzer-sys"]);
    Ok(())
}
