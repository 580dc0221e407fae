//! What the guests ask of their disks, and what the oracle says to the answers.

use super::host::{self, Asked, Kind};
use super::placement::EXTENT_BYTES;
use super::world::{What, World};
use replicator::words::Span;
use replicator::writer::{Event, GuestOp, RequestId};

impl World {
    pub(super) fn guest(&mut self, host: usize) {
        let life = self.hosts[host].life;
        if !self.hosts[host].guest_on || self.hosts[host].stopping || self.quiet {
            return;
        }
        while self.hosts[host].requests.len() < self.hosts[host].depth {
            self.issue(host);
            if self.dice.chance(0.5) {
                break;
            }
        }
        let wait = self.dice.wait(self.load.pause);
        self.after(wait, What::Guest(host, life));
    }

    pub(super) fn issue(&mut self, host: usize) {
        let bytes = self.disk_of(host).placement.record.bytes;
        let load = self.load;
        let span = load.span(&mut self.dice, EXTENT_BYTES, bytes);
        let die = self.dice.range(0..100);
        let zeroes = load.writes + load.zeroes;
        match die {
            _ if die < load.writes => self.issue_write(host, span, false),
            _ if die < zeroes => self.issue_write(host, span, true),
            _ if die < zeroes + load.reads => self.issue_read(host, span),
            _ => self.issue_flush(host),
        }
    }

    pub(super) fn issue_write(&mut self, host: usize, span: Span, zeroes: bool) {
        let number = self.disk_of(host).oracle.write(host::sectors(span), zeroes);
        let op = if zeroes {
            GuestOp::Zero { span }
        } else {
            let data = host::data(number, span);
            GuestOp::Write { span, data }
        };
        self.submit(host, span, Kind::Write(number), op);
    }

    pub(super) fn issue_read(&mut self, host: usize, span: Span) {
        let ticket = self.disk_of(host).oracle.read(host::sectors(span));
        self.submit(host, span, Kind::Read(ticket), GuestOp::Read { span });
    }

    pub(super) fn issue_flush(&mut self, host: usize) {
        let ticket = self.disk_of(host).oracle.flush();
        let span = Span::new(0, 0);
        self.submit(host, span, Kind::Flush(ticket), GuestOp::Flush);
    }

    pub(super) fn submit(&mut self, host: usize, span: Span, kind: Kind, op: GuestOp) {
        let life = self.hosts[host].life;
        let id = self.hosts[host].next_request();
        self.say(format_args!(
            "G{host}.{life} r{} {} {kind:?}",
            id.0,
            host::describe(&op)
        ));
        // What is not filled must not pass for anything.
        let landing = match kind {
            Kind::Read(_) => vec![0xee; span.len as usize],
            _ => Vec::new(),
        };
        let asked = Asked {
            span,
            kind,
            landing,
        };
        self.hosts[host].requests.insert(id, asked);
        self.tell(host, life, Event::Guest { id, op });
    }

    pub(super) fn completed(&mut self, host: usize, id: RequestId, ok: bool) {
        let life = self.hosts[host].life;
        self.trace.mix(id.0 << 1 | u64::from(ok));
        let Some(asked) = self.hosts[host].requests.remove(&id) else {
            return self.violate(format!("request {} completes twice", id.0));
        };
        self.say(format_args!("G{host}.{life} r{} ends, ok: {ok}", id.0));
        match asked.kind {
            Kind::Write(number) if ok => {
                self.stats.count("writes");
                if !self.is_owner(host) {
                    self.stats
                        .count("writes that a superseded writer completes");
                }
                if let Err(sector) = self.disk_of(host).oracle.acknowledged(number) {
                    self.violate(format!(
                        "I3: W{host} completes write {number}, which the writer after it does not see in sector {sector}"
                    ));
                }
            }
            Kind::Write(number) => {
                self.stats.count("writes of unknown outcome");
                self.disk_of(host).oracle.abandoned(number);
            }
            Kind::Flush(ticket) if ok => {
                self.stats.count("flushes");
                self.disk_of(host).oracle.flushed(ticket);
            }
            Kind::Flush(ticket) => self.disk_of(host).oracle.flush_failed(ticket),
            // R3: a writer that was superseded and is cut off from all who know may read old blocks.
            Kind::Read(ticket) if ok && !self.is_owner(host) => {
                self.disk_of(host).oracle.read_failed(ticket)
            }
            Kind::Read(ticket) if ok => {
                self.stats.count("reads");
                let oracle = &mut self.disk_of(host).oracle;
                let read = oracle.read_done(ticket, true, |sector| asked.content(sector));
                if let Err(wrong) = read {
                    self.violate(format!(
                        "I1/I5: W{host} reads {:?} in sector {} where one of {:?} must be",
                        wrong.got, wrong.sector, wrong.may
                    ));
                }
            }
            Kind::Read(ticket) => {
                self.stats.count("reads that failed");
                self.disk_of(host).oracle.read_failed(ticket);
            }
        }
    }

    /// The requests of a writer that is gone.
    pub(super) fn abandon(&mut self, host: usize, kinds: Vec<Kind>) {
        for kind in kinds {
            match kind {
                Kind::Write(number) => self.disk_of(host).oracle.abandoned(number),
                Kind::Read(ticket) => self.disk_of(host).oracle.read_failed(ticket),
                Kind::Flush(ticket) => self.disk_of(host).oracle.flush_failed(ticket),
            }
        }
    }
}
