//! What runs for long: a node. (The placement service brings its own `server::run`.)

mod files;
pub mod node;
pub mod upgrade;

/// A daemon in which anything has panicked ends at once, like one that was killed: what starts it
/// again takes its disks over and finishes their requests. Going on without a part of itself would
/// leave guests waiting for ever.
pub fn end_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
}
