//! Cubic, but for one thing: the loss of less than a datagram's worth says nothing about the path.
//!
//! What a peer could not decrypt yet, because the handshake's last packets overtook one another, counts
//! as lost: a few dozen bytes, just as the connection begins. Taken for congestion, that ends slow start
//! at the initial window, and a link of 100 MB/s and 20 ms is used up only twelve seconds later. A queue
//! that overflows drops full datagrams.

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// No path carries less in a datagram (RFC 9000, section 14).
const LEAST_DATAGRAM: u64 = 1200;

/// Makes a [`Patient`] Cubic for each connection.
pub struct PatientConfig(pub Arc<CubicConfig>);

impl ControllerFactory for PatientConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Patient(self.0.clone().build(now, mtu)))
    }
}

struct Patient(Box<dyn Controller>);

impl Controller for Patient {
    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        // Zero: a router has marked packets instead of dropping them.
        if persistent || lost == 0 || lost >= LEAST_DATAGRAM {
            self.0.on_congestion_event(now, sent, persistent, lost);
        }
    }

    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet: u64) {
        self.0.on_sent(now, bytes, last_packet);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.0.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest: Option<u64>,
    ) {
        self.0.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.0.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.0.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.0.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Patient(self.0.clone_box()))
    }

    fn initial_window(&self) -> u64 {
        self.0.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crumbs_that_are_lost_leave_the_window_as_it_is() {
        let config = Arc::new(PatientConfig(Arc::default()));
        let now = Instant::now();
        let mut controller = config.build(now, 1200);
        let window = controller.window();
        controller.on_congestion_event(now, now, false, 155);
        assert_eq!(controller.window(), window);
        controller.on_congestion_event(now, now, false, LEAST_DATAGRAM);
        assert!(controller.window() < window);
    }
}
