//! The cables: sessions, lost and doubled messages, and the stores at their ends.

use super::brief::{brief, brief_reply};
use super::pulls::Pull;
use super::store_node::{Answer, Return, name};
use super::world::{What, World};
use replicator::message::{Reply, Request};
use replicator::plant::{Plant, planted};
use replicator::words::StoreId;
use replicator::writer::{Aim, CallId, Event};

/// When a store says that it has synced all, if nothing comes that would: microseconds, short like all bounds here.
const NOTE_AFTER: u64 = 5_000;

impl World {
    pub(super) fn arrives(&mut self, store: StoreId, to: Return, request: Request) {
        let session = self.links.get(&(to.host, store)).map(|link| link.session);
        if session != Some(to.session) {
            self.stats.count("questions of a session that was over");
        }
        self.say(format_args!(
            "  {} <- W{}.{} {}",
            name(store),
            to.host,
            to.life,
            brief(&request)
        ));
        let heals = matches!(request, Request::Heal { .. });
        if let Request::Pull {
            asker,
            source,
            from,
            below,
            blocks,
        }
        | Request::Heal {
            asker,
            source,
            from,
            below,
            blocks,
        } = request
        {
            let pull = Pull {
                asker,
                source,
                from,
                below,
                blocks,
                heals,
            };
            return self.pull_arrives(store, to, pull);
        }
        let node = self.store(store);
        let process = node.process;
        let answer = node.handle(request, to);
        if self.died_writing(store) {
            return;
        }
        match answer {
            None => {}
            Some(Answer::Now(reply)) => self.reply(store, to, reply),
            Some(Answer::Read(plan)) => {
                let wait = self.dice.wait(30);
                self.after(wait, What::RunRead(store, process, to, plan));
            }
            Some(Answer::AfterSync) => {
                let wait = self.dice.wait(20);
                self.after(wait, What::SyncBegins(store, process));
            }
        }
        if self.store(store).has_failed() {
            self.stats.count("failed stores");

            let wait = self.dice.wait(10_000);
            self.after(wait, What::StartStore(store, process));
        }
    }

    /// Its process died in the middle of a write, and nobody gets an answer.
    pub(super) fn died_writing(&mut self, store: StoreId) -> bool {
        let node = self.store(store);
        if !node.tears || !node.has_failed() {
            return false;
        }
        self.stats.count("torn writes");
        let at = self.stores.iter().position(|s| s.id == store);
        self.store_dies(at.expect("a store"), false);
        true
    }

    pub(super) fn sync_begins(&mut self, store: StoreId, process: u64) {
        let node = self.store(store);
        if node.process != process {
            return;
        }
        if node.sync_begins() {
            let wait = self.dice.wait(200);
            self.after(wait, What::SyncEnds(store, process));
        }
        self.keep_promises(store);
    }

    pub(super) fn sync_ends(&mut self, store: StoreId, process: u64) {
        let node = self.store(store);
        if node.process != process {
            return;
        }
        node.sync_ends();
        if node.has_failed() {
            self.stats.count("failed syncs");
            self.say(format_args!("{} fails a sync", name(store)));
            let wait = self.dice.wait(10_000);
            self.after(wait, What::StartStore(store, process));
        }
        if self.keep_promises(store) {
            self.after(1, What::SyncBegins(store, process));
        } else if self.store(store).wants_note() {
            self.after(NOTE_AFTER, What::Note(store, process));
        }
    }

    pub(super) fn note(&mut self, store: StoreId, process: u64) {
        let node = self.store(store);
        if node.process == process && node.notes() {
            self.after(1, What::SyncBegins(store, process));
        }
    }

    /// Gives the answers whose sync has come; says whether more wait.
    pub(super) fn keep_promises(&mut self, store: StoreId) -> bool {
        let (answers, more) = self.store(store).kept_promises();
        for (reply, to) in answers {
            self.reply(store, to, reply);
        }
        more
    }

    /// The store's answer sets out.
    pub(super) fn reply(&mut self, store: StoreId, to: Return, reply: Reply) {
        if let Reply::Sealed(_) = reply {
            self.store(store).was_sealed();
        }
        self.say(format_args!(
            "  {} -> W{}.{} #{} {}",
            name(store),
            to.host,
            to.life,
            to.call.0,
            brief_reply(&reply)
        ));
        let mute = self
            .links
            .get(&(to.host, store))
            .is_some_and(|link| link.mute);
        if mute || self.dice.chance(self.faults.drop) {
            return self.lost(to.host, store, to.session);
        }
        if self.dice.chance(self.faults.double * 0.5) {
            self.stats.count("doubled answers");
            let wait = self.dice.wait(2000);
            self.after(wait, What::Answer(store, to, reply.clone()));
        }
        let wait = self.travel(to.host, store);
        self.after(wait, What::Answer(store, to, reply));
    }

    pub(super) fn answer(&mut self, store: StoreId, to: Return, mut reply: Reply) {
        let link = self.links.entry((to.host, store)).or_default();
        if !link.up || link.session != to.session || self.hosts[to.host].life != to.life {
            return;
        }
        let host = &mut self.hosts[to.host];
        if let Reply::Read(answer) = &mut reply {
            let withdrawn = host.withdrawn.contains(&to.call);
            if let Some((_, Aim::Guest { .. }, _)) = host.reads.get(&to.call) {
                if withdrawn {
                    return;
                }
                if let Err(why) = host.land(to.call, answer) {
                    return self.violate(why);
                }
                answer.data = Default::default();
            }
        }
        let host = &mut self.hosts[to.host];
        host.reads.remove(&to.call);
        let event = Event::Reply {
            call: to.call,
            reply,
        };
        self.tell(to.host, to.life, event);
    }

    pub(super) fn send(
        &mut self,
        host: usize,
        store: StoreId,
        call: CallId,
        request: Request,
        aim: Aim,
    ) {
        let life = self.hosts[host].life;
        let link = self.links.entry((host, store)).or_default();
        let (session, deaf) = (link.session, link.deaf);
        if !link.up {
            return self.violate(format!(
                "W{host} sends to {} without a session",
                name(store)
            ));
        }
        if let Request::Read { blocks, .. } = &request {
            self.hosts[host].reads.insert(call, (store, aim, *blocks));
        }
        let to = Return {
            host,
            life,
            session,
            call,
        };
        if deaf || self.dice.chance(self.faults.drop) {
            return self.lost(host, store, session);
        }
        if self.dice.chance(self.faults.double) {
            self.stats.count("doubled questions");
            let wait = self.dice.wait(2000);
            self.after(wait, What::ToStore(store, to, request.clone()));
        }
        let wait = self.travel(host, store);
        self.after(wait, What::ToStore(store, to, request));
    }

    /// A message was lost: its session is found broken some time later.
    pub(super) fn lost(&mut self, host: usize, store: StoreId, session: u64) {
        self.stats.count("lost messages");
        let wait = self.dice.wait(3000);
        self.after(wait, What::Break(host, store, session));
    }

    pub(super) fn travel(&mut self, host: usize, store: StoreId) -> u64 {
        if self.near(host) == Some(store) {
            return self.dice.range(1..10);
        }
        if self.dice.chance(self.faults.slow) {
            return self.dice.range(1_000..40_000);
        }
        let far = self.site(host) != Some(self.store(store).site);
        self.dice.wait(if far { self.far } else { 100 })
    }

    /// Where a host stands: with the store on its machine.
    pub(super) fn site(&self, host: usize) -> Option<usize> {
        self.stores
            .get(self.hosts[host].machine)
            .map(|store| store.site)
    }

    /// The store on the same machine.
    pub(super) fn near(&self, host: usize) -> Option<StoreId> {
        self.stores
            .get(self.hosts[host].machine)
            .map(|store| store.id)
    }

    pub(super) fn connects(&mut self, host: usize, life: u64, store: StoreId) {
        if self.hosts[host].life != life || !self.hosts[host].wanted.contains(&store) {
            return;
        }
        let node = self.store(store);
        let up = node.core.is_some() && (!node.refused || planted(Plant::RolledBackLetIn));
        let link = self.links.entry((host, store)).or_default();
        if link.up {
            return;
        }
        if !link.is_sound() || !up {
            let wait = self.dice.wait(1000);
            return self.after(wait, What::Connect(host, life, store));
        }
        link.up = true;
        link.session += 1;
        self.tell(host, life, Event::Connected { store });
    }

    pub(super) fn breaks(&mut self, host: usize, store: StoreId) {
        let link = self.links.entry((host, store)).or_default();
        if !link.up {
            return;
        }
        let (session, paused) = (link.session, self.hosts[host].paused_until);
        if paused > self.now {
            // It finds out when it runs again.
            return self.after(0, What::Break(host, store, session));
        }
        let link = self.links.entry((host, store)).or_default();
        link.up = false;
        let life = self.hosts[host].life;
        self.stats.count("broken sessions");
        self.say(format_args!("session W{host}-{} breaks", name(store)));
        self.hosts[host].reads.retain(|_, (to, ..)| *to != store);
        self.tell(host, life, Event::Disconnected { store });
        let wait = self.dice.wait(500);
        self.after(wait, What::Connect(host, life, store));
    }
}
