//! What processes cost: the CPU time of all their threads, and how often those went to sleep.

use std::fs;
use std::io;

use anyhow::{Context, Result, ensure};

/// CPU time since their start, of all threads that they ever had, to the nanosecond.
pub fn cpu_ns(pids: &[u32]) -> Result<u64> {
    let mut total = 0;
    for &pid in pids {
        let mut clock = 0;
        // SAFETY: it writes the clock's id, and nothing else.
        let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
        ensure!(error == 0, "process {pid} is not there");
        total += clock_ns(clock).with_context(|| format!("the CPU time of process {pid}"))?;
    }
    Ok(total)
}

/// Of one thread, to a hundredth of a second.
pub fn thread_cpu_s(pid: u32, thread: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"))?;
    let ticks = ticks_in(&stat).context("a thread's times")?;
    // SAFETY: a plain call that reads a constant of the system.
    let each_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / each_second as f64)
}

/// For itself and in the kernel: the 14th and 15th field, the second of which, a name, may hold anything.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut times = after_name.split(' ').skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// Our own.
pub fn own_cpu_ns() -> Result<u64> {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> Result<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes the time, and nothing else.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64),
        _ => Err(io::Error::last_os_error().into()),
    }
}

/// Voluntary context switches of all their threads: each is a wake-up that somebody paid for.
pub fn sleeps(pids: &[u32]) -> u64 {
    let threads = pids
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok())
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    threads.filter_map(|status| sleeps_in(&status)).sum()
}

/// Resident memory, in KiB, of all of them.
pub fn resident_kib(pids: &[u32]) -> u64 {
    let status = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/status")).ok();
    let own = |status: String| field(&status, "VmRSS:");
    pids.iter().filter_map(status).filter_map(own).sum()
}

fn sleeps_in(status: &str) -> Option<u64> {
    field(status, "voluntary_ctxt_switches:")
}

fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let status = "Name:\tukai\nVmRSS:\t  1234 kB\nvoluntary_ctxt_switches:\t17\n\
                      nonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(sleeps_in(status), Some(17));
        assert_eq!(field(status, "VmRSS:"), Some(1234));
        assert_eq!(field(status, "VmSwap:"), None);
        let stat = "71 (CPU 0/TCG) ) R 1 2 3 0 -1 4194368 5 0 0 0 700 34 0 0 20 0 4 0 9 1 2";
        assert_eq!(ticks_in(stat), Some(734));
        assert_eq!(ticks_in("71 (name"), None);
    }

    #[test]
    fn our_own_time_goes_on_and_others_are_read_too() -> Result<()> {
        let pid = std::process::id();
        let before = cpu_ns(&[pid])?;
        let mut sum = 0_u64;
        while cpu_ns(&[pid])? == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(own_cpu_ns()? > before && resident_kib(&[pid]) > 0);
        assert!(thread_cpu_s(pid, pid)? >= 0.0);
        // No kernel gives out a number beyond 2^22.
        assert!(cpu_ns(&[1 << 22]).is_err(), "nobody");
        Ok(())
    }
}
