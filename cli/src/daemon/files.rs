//! How many files a node may have open. Each disk takes about ten, each part of the log that is read one or two; the 1,024 that
//! a process usually begins with are too few for many disks over a large store.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A node with many disks over a large store needs so many.
const WANTED: u64 = 16 << 10;

/// Allows this process as many as it may allow itself.
pub fn allow_many() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (Some(now), most) = (current, maximum.unwrap_or(u64::MAX)) else {
        return;
    };
    if now < most {
        let all = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, all) {
            tracing::warn!(%error, now, "cannot allow myself more open files");
            return;
        }
    }
    if most < WANTED {
        tracing::warn!(
            most,
            wanted = WANTED,
            "only so many files may be open at once: too few for many disks over a large store; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_allowed_is_allowed() {
        let before = getrlimit(Resource::Nofile);
        allow_many();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.maximum, before.maximum);
        assert_eq!(after.current, before.maximum);
    }
}
