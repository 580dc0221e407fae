//! A real guest under QEMU, with one vhost-user-blk disk, driven by commands.
//!
//! It boots a distribution's kernel with an initramfs that holds busybox, e2fsprogs and `ukai-guest`
//! (`integration/guest-tools`). The console goes to a log, commands and answers over the second serial
//! port. Everything is bounded in time; dropping a [`Guest`] kills its QEMU.

mod control;
pub mod kit;
mod live;
mod qmp;
mod storage_daemon;
pub mod ticks;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::networks::Door;
use crate::processes::Process;
use control::Control;
pub use control::{Output, Task};
use kit::Kit;
pub use live::{MIGRATION_BOUND, Terms};
use qmp::Qmp;
pub use storage_daemon::StorageDaemon;

const QEMU: &str = "qemu-system-x86_64";
/// Two to four seconds without KVM on a quiet machine; room for a busy one.
const BOOT_BOUND: Duration = Duration::from_secs(90);
const POWER_OFF_BOUND: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub struct GuestConfig {
    pub disk: Disk,
    pub queues: u16,
    pub cpus: u8,
    pub memory_mib: u32,
    /// Wait for a live migration instead of booting.
    pub incoming: bool,
    /// QEMU's arguments for further devices.
    pub devices: Vec<String>,
    /// With Bonnie++ and PostMark, which most guests have no use for.
    pub benchmarks: bool,
    /// Where QEMU runs, if its disk is only reached from there.
    pub network: Option<Door>,
}

#[derive(Clone)]
pub enum Disk {
    /// Served by the backend that listens on this socket.
    VhostUser(PathBuf),
    /// Served by QEMU itself, from this raw image: block node `disk`.
    Image(PathBuf),
    /// Served by QEMU itself, by whatever block node `disk` is after these arguments.
    Node(Vec<String>),
}

impl GuestConfig {
    /// A guest on the disk of the backend that listens on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> GuestConfig {
        GuestConfig::on(Disk::VhostUser(socket.into()))
    }

    pub fn on(disk: Disk) -> GuestConfig {
        GuestConfig {
            disk,
            queues: 1,
            cpus: 1,
            memory_mib: 256,
            incoming: false,
            devices: Vec::new(),
            benchmarks: false,
            network: None,
        }
    }

    /// The same guest, as the destination of its migration has it.
    pub fn incoming_on(&self, disk: Disk) -> GuestConfig {
        GuestConfig {
            disk,
            incoming: true,
            ..self.clone()
        }
    }
}

pub struct Guest {
    qemu: Process,
    control: Control,
    qmp: Qmp,
    console: PathBuf,
}

impl Guest {
    /// Boots (or starts to wait for a migration) and returns when the guest takes commands.
    ///
    /// `directory` gets the guest's sockets, `log` its console; `name` tells guests of one test apart.
    pub fn boot(name: &str, config: &GuestConfig, directory: &Path, log: &Path) -> Result<Guest> {
        let kit = Kit::find()?;
        let control_path = directory.join(format!("{name}.ctl"));
        let qmp_path = directory.join(format!("{name}.qmp"));
        for stale in [&control_path, &qmp_path] {
            let _ = std::fs::remove_file(stale);
        }
        let command = command_line(&kit, config, &control_path, &qmp_path, log);
        let qemu_log = log.with_extension("qemu.log");
        let mut qemu = Process::start(&format!("QEMU of {name}"), command, &qemu_log)?;
        let deadline = Instant::now() + BOOT_BOUND;
        let qmp = Qmp::connect(&qmp_path, deadline, &mut qemu)?;
        let control = Control::connect(&control_path, deadline, &mut qemu)?;
        let mut guest = Guest {
            qemu,
            control,
            qmp,
            console: log.to_owned(),
        };
        if !config.incoming {
            guest.control.read()?;
            guest.wait_ready(deadline)?;
        }
        Ok(guest)
    }

    /// Runs one shell command to its end.
    pub fn run(&mut self, command: &str, bound: Duration) -> Result<Output> {
        let deadline = Instant::now() + bound;
        let mut task = self.start(command)?;
        let result = task.finish(deadline);
        result
            .map_err(|error| self.explain(error))
            .with_context(|| format!("guest: {command}"))
    }

    /// Runs one shell command, which must succeed; returns what it printed.
    pub fn must(&mut self, command: &str, bound: Duration) -> Result<String> {
        let output = self.run(command, bound)?;
        if output.status != 0 {
            bail!(
                "guest: {command}: status {}\n{}",
                output.status,
                output.text
            );
        }
        Ok(output.text)
    }

    /// Starts a command and leaves it running.
    pub fn start(&mut self, command: &str) -> Result<Task> {
        self.control.start(command)
    }

    pub fn qmp(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.qmp.execute(command, arguments)
    }

    /// Waits for an event of QEMU's, one that has come already included.
    pub fn qmp_event(&mut self, name: &str, bound: Duration) -> Result<Value> {
        self.qmp.event(name, bound)
    }

    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    pub fn running(&mut self) -> bool {
        self.qemu.running()
    }

    /// The host's power fails, as far as this guest can tell.
    pub fn kill_9(mut self) {
        self.qemu.kill_9();
    }

    /// Syncs and powers off; an error if it does not end in time.
    pub fn shutdown(mut self) -> Result<()> {
        let _going = self.start("sync; umount -a -r 2>/dev/null; poweroff -f")?;
        if self.qemu.wait(POWER_OFF_BOUND).is_none() {
            bail!(
                "the guest did not power off; see {}",
                self.console.display()
            );
        }
        Ok(())
    }

    fn wait_ready(&mut self, deadline: Instant) -> Result<()> {
        while !self.control.ready() {
            self.qemu.must_run()?;
            if Instant::now() >= deadline {
                bail!(
                    "the guest is not up in time; see {}",
                    self.console.display()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A guest that stopped answering has often said why on its console.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let console = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n");
        error.context(format!("the end of {}:\n{last}", self.console.display()))
    }
}

/// A line for a person's shell: the same guest, with a shell of its own in the terminal.
pub fn manual_command(config: &GuestConfig) -> Result<String> {
    let kit = Kit::find()?;
    Ok(format!(
        "qemu-system-x86_64 -machine q35,memory-backend=mem -m {memory}M \\\n    \
         -object memory-backend-memfd,id=mem,size={memory}M,share=on \\\n    \
         -kernel {kernel} -initrd {initramfs} \\\n    \
         -append 'console=ttyS0 ukai.shell' -nographic -nodefaults -serial mon:stdio \\\n    \
         {disk}",
        memory = config.memory_mib,
        kernel = kit.kernel.display(),
        initramfs = kit.initramfs.display(),
        disk = disk_arguments(config).join(" "),
    ))
}

fn command_line(
    kit: &Kit,
    config: &GuestConfig,
    control: &Path,
    qmp: &Path,
    console: &Path,
) -> Command {
    let mut qemu = Command::new(QEMU);
    let mut option = |name: &str, value: String| {
        qemu.arg(name).arg(value);
    };
    option(
        "-machine",
        format!("q35,accel={},memory-backend=mem", accelerator()),
    );
    // With one processor at most TCG takes the guest's barriers for nothing, though our threads look at the
    // same rings: a kick or an interrupt is lost once in a few thousand crossings.
    option(
        "-smp",
        format!("{0},maxcpus={1}", config.cpus, config.cpus.max(2)),
    );
    option("-m", format!("{}M", config.memory_mib));
    option(
        "-object",
        format!(
            "memory-backend-memfd,id=mem,size={}M,share=on",
            config.memory_mib
        ),
    );
    option("-kernel", kit.kernel.display().to_string());
    let initramfs = match config.benchmarks {
        true => &kit.benchmarks,
        false => &kit.initramfs,
    };
    option("-initrd", initramfs.display().to_string());
    // Without KVM on a busy machine the timer may not tick in time for the kernel's check of it.
    let kernel = "console=ttyS0 panic=-1 loglevel=5 no_timer_check";
    option("-append", kernel.to_owned());
    option(
        "-chardev",
        format!("file,id=console,path={}", console.display()),
    );
    option("-serial", "chardev:console".to_owned());
    option(
        "-chardev",
        format!(
            "socket,id=control,path={},server=on,wait=off",
            control.display()
        ),
    );
    option("-serial", "chardev:control".to_owned());
    option("-qmp", format!("unix:{},server=on,wait=off", qmp.display()));
    if config.incoming {
        option("-incoming", "defer".to_owned());
    }
    qemu.args(disk_arguments(config)).args(&config.devices);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    if let Some(network) = &config.network {
        network.enter(&mut qemu);
    }
    qemu
}

/// A /dev/kvm that opens may still not work (nested, filtered): whoever has one names it.
fn accelerator() -> String {
    std::env::var("UKAI_GUEST_ACCEL").unwrap_or_else(|_| "tcg".to_owned())
}

/// How QEMU is told to connect again: before 9.2, Debian 12's own among them, after whole seconds only.
fn reconnects() -> &'static str {
    match *VERSION {
        Some(version) if version < (9, 2) => "reconnect=1",
        _ => "reconnect-ms=50",
    }
}

/// Whether a migration may lose what the guest writes to its memory meanwhile, whatever its disk is
/// (docs/virtual-machines.md).
fn migration_loses_memory() -> bool {
    accelerator() == "tcg" && VERSION.is_some_and(|version| version <= (7, 2))
}

/// The installed QEMU's.
static VERSION: LazyLock<Option<(u32, u32)>> = LazyLock::new(|| {
    let said = Command::new(QEMU).arg("--version").output().ok()?;
    version(&String::from_utf8_lossy(&said.stdout))
});

/// Of what `--version` prints, the first two numbers.
fn version(said: &str) -> Option<(u32, u32)> {
    let numbers = said.split_once("version ")?.1;
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

fn disk_arguments(config: &GuestConfig) -> Vec<String> {
    let owned = |words: [&str; 2]| words.map(str::to_owned).to_vec();
    let (mut arguments, device) = match &config.disk {
        Disk::VhostUser(socket) => {
            let again = reconnects();
            let backend = format!("socket,id=disk,path={},{again}", socket.display());
            (
                owned(["-chardev", &backend]),
                "vhost-user-blk-pci,chardev=disk",
            )
        }
        Disk::Image(image) => {
            let backend = format!(
                "driver=file,node-name=disk,filename={},cache.direct=on,discard=unmap",
                image.display()
            );
            (owned(["-blockdev", &backend]), "virtio-blk-pci,drive=disk")
        }
        Disk::Node(backend) => (backend.clone(), "virtio-blk-pci,drive=disk"),
    };
    let device = format!("{device},num-queues={}", config.queues);
    arguments.extend(owned(["-device", &device]));
    arguments
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn the_version_of_qemu_is_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(version(debian), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0\n"), Some((10, 0)));
        assert_eq!(version("no such program"), None);
    }
}
