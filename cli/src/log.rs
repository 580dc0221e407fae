//! Logs go to standard error; `UKAI_LOG` says how much (`info`, `debug`, `vhost_backend=trace`, ...).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// `usual` is the level where `UKAI_LOG` says nothing.
pub fn start(usual: &str) {
    let filter = EnvFilter::try_from_env("UKAI_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
