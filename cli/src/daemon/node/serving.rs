//! The threads on which other nodes' writers are served. Each listens for itself on the node's address, and all of a
//! connection is done on the thread that it came to, as it is with disks: no request wakes a second thread.
//!
//! They listen before the store is opened, since a start that fails there must leave no trace in it, and begin to serve when
//! it is open. Who comes meanwhile waits, unanswered: another node that runs here in our place would suffer from answers.
//!
//! Sessions write to the store: where that hangs, these threads do, and the rest of the node goes on.

use super::Config;
use anyhow::Context;
use replicator::net::{Serve, Server};
use replicator::words::StoreId;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, EnterGuard, Runtime};
use tokio::sync::oneshot;
use tokio::time::timeout;

const THREADS: usize = 2;
/// For peers to hear that the node is stopping.
const FAREWELL: Duration = Duration::from_millis(100);
/// A thread that does not end by then hangs, with the store.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Serving {
    pub listen: SocketAddr,
    threads: Vec<Thread>,
}

struct Thread {
    begin: Option<oneshot::Sender<()>>,
    close: Box<dyn Fn() + Send + Sync>,
    over: oneshot::Receiver<()>,
}

impl Serving {
    /// Listens, and serves nobody before [`Serving::begin`].
    pub fn bind<S: Serve>(
        config: &Config,
        find: impl Fn(StoreId) -> Option<S> + Send + Sync + 'static,
    ) -> anyhow::Result<Serving> {
        let first = Unused(Some(runtime()?));
        let guard = first.enter();
        let server = Server::bind(config.listen, &config.credentials, find)
            .with_context(|| format!("cannot listen on {} for other nodes", config.listen))?
            .accept_ungranted(config.accept_ungranted);
        drop(guard);
        let listen = server.local_addr()?;
        let mut threads = Vec::new();
        for _ in 1..THREADS {
            let runtime = Unused(Some(runtime()?));
            let guard = runtime.enter();
            let another = server
                .another()
                .context("cannot listen on another thread")?;
            drop(guard);
            threads.push(Thread::spawn(runtime.take(), another)?);
        }
        threads.push(Thread::spawn(first.take(), server)?);
        Ok(Serving { listen, threads })
    }

    pub fn begin(&mut self) {
        for thread in &mut self.threads {
            if let Some(begin) = thread.begin.take() {
                // It waits for nothing else.
                let _ = begin.send(());
            }
        }
    }

    pub async fn stop(self) {
        for thread in &self.threads {
            (thread.close)();
        }
        for thread in self.threads {
            if timeout(PATIENCE, thread.over).await.is_err() {
                tracing::error!("a thread that serves other nodes does not end");
            }
        }
    }
}

/// A runtime that no thread has yet. It waits for nothing when it goes: that is not allowed where others run, and a node
/// that cannot listen is to say so.
struct Unused(Option<Runtime>);

impl Unused {
    fn enter(&self) -> EnterGuard<'_> {
        self.0.as_ref().expect("not taken").enter()
    }

    fn take(mut self) -> Runtime {
        self.0.take().expect("taken once")
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Thread {
    fn spawn<S: Serve>(runtime: Runtime, server: Server<S>) -> anyhow::Result<Thread> {
        let endpoint = server.endpoint();
        let (begin, begun) = oneshot::channel();
        let (done, over) = oneshot::channel();
        let closing = endpoint.clone();
        let close = move || closing.close(0u32.into(), b"this node is stopping");
        thread::Builder::new()
            .name("store-server".into())
            .spawn(move || {
                if begun.blocking_recv().is_err() {
                    return;
                }
                runtime.block_on(async {
                    server.run().await;
                    let _ = timeout(FAREWELL, endpoint.wait_idle()).await;
                });
                // Nobody may be waiting any more.
                let _ = done.send(());
            })
            .context("cannot start a thread for other nodes")?;
        Ok(Thread {
            begin: Some(begin),
            close: Box::new(close),
            over,
        })
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a thread for other nodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_no_thread_gets_may_go_where_others_run() {
        let outer = runtime().unwrap();
        outer.block_on(async { drop(Unused(Some(runtime().unwrap()))) });
    }
}
