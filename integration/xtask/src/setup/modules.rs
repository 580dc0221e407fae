//! Which kernel modules a guest needs, and in which order: a module after those that it depends on.
//!
//! A package that was only unpacked has no modules.dep (depmod writes that at installation), so the
//! dependencies are read from the modules themselves: their `.modinfo` section holds
//! `depends=a,b` and `softdep=pre: c`, each ended by a zero byte.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A virtio disk, and ext4 on it. A name that is neither a module nor built in was merged into
/// another one in that kernel's version (crc32c_generic in 6.16).
const WANTED: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

pub fn in_order(directory: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    collect(&directory.join("kernel"), &mut files)?;
    let built_in: HashSet<String> = fs::read_to_string(directory.join("modules.builtin"))
        .unwrap_or_default()
        .lines()
        .map(|line| module_name(Path::new(line)))
        .collect();
    let mut order = Order {
        files,
        built_in,
        seen: HashSet::new(),
        modules: Vec::new(),
    };
    for name in WANTED {
        order.add(name)?;
    }
    if !order.seen.contains("virtio_blk") {
        bail!("this kernel has no virtio_blk");
    }
    Ok(order.modules)
}

struct Order {
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
    seen: HashSet<String>,
    modules: Vec<Module>,
}

impl Order {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) {
            self.seen.insert(name);
            return Ok(());
        }
        let Some(file) = self.files.get(&name).cloned() else {
            return Ok(());
        };
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let bytes = read(&file)?;
        for dependency in dependencies(&bytes) {
            self.add(&dependency)?;
        }
        self.modules.push(Module { name, bytes });
        Ok(())
    }
}

fn collect(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.to_string_lossy().contains(".ko") {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// `drivers/block/virtio_blk.ko.xz` is virtio_blk; a dash and an underscore are the same.
fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split(".ko")
        .next()
        .unwrap_or_default()
        .replace('-', "_")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(|| format!("read {}", file.display())),
    };
    let output = Command::new(tool)
        .args(["-d", "-c"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{tool} is needed for {}", file.display()))?;
    if !output.status.success() {
        bail!("{tool} cannot unpack {}", file.display());
    }
    Ok(output.stdout)
}

fn dependencies(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in module.split(|&byte| byte == 0) {
        let Ok(entry) = std::str::from_utf8(entry) else {
            continue;
        };
        if let Some(list) = entry.strip_prefix("depends=") {
            names.extend(
                list.split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            );
        }
        if let Some(list) = entry.strip_prefix("softdep=") {
            let before = list.split("post:").next().unwrap_or_default();
            names.extend(
                before
                    .split_whitespace()
                    .filter(|word| *word != "pre:")
                    .map(str::to_owned),
            );
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module =
            b"\x7fELF\0license=GPL\0depends=virtio,virtio-ring\0softdep=pre: crc32c post: other\0";
        assert_eq!(dependencies(module), ["virtio", "virtio-ring", "crc32c"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
    }

    #[test]
    fn a_module_is_named_after_its_file() {
        for file in ["a/virtio-blk.ko", "virtio_blk.ko.xz", "virtio-blk.ko.zst"] {
            assert_eq!(module_name(Path::new(file)), "virtio_blk");
        }
    }
}
