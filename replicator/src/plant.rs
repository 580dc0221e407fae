//! Bugs on purpose: each is one rule of the protocol left out, so that the simulator can show that
//! it would notice. Without the feature `planted-bugs` every question is answered "no" at compile
//! time, and nothing of it is left in the program.

/// A rule left out. The figure in brackets names it in docs/protocol.md.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// A write is acknowledged when it is sent, not when it is held [W3].
    AcknowledgeOnSend,
    /// A flush counts a store that is another incarnation by now [S1].
    FlushIgnoresIncarnation,
    /// A store answers in an epoch before it has synced it [S3].
    EpochNotSynced,
    /// A close does not sync [S4].
    CloseWithoutSync,
    /// A restart forgets that a tail may be lost [S2].
    LostMarkCleared,
    /// A lost attach goes on as a take-over [A1].
    LostSwapTakesOver,
    /// Any version found in the newest entry wins [R1].
    AnyVersionWins,
    /// A store forgets the record before the newest one at once [R2].
    PredecessorDropped,
    /// A read of an older entry is not bounded by the newer one's beginning [R2].
    OlderReadUnbounded,
    /// A write is acknowledged before the swap that ejects who missed it [W6].
    AcknowledgeBeforeEject,
    /// After an ejection, what one member acknowledged before it is not reissued [W7].
    NotReissued,
    /// Overlapping writes are in flight together [W2].
    NoBlockLock,
    /// A discard removes the index entry [W5].
    DiscardDeletes,
    /// A take-over leaves differing tails as they are [A3].
    TailNotRewritten,
    /// A take-over does not sync what it has evened out [S4].
    SettleWithoutSync,
    /// A fill gets a new version instead of the block's own [F1].
    FillWithNewVersion,
    /// Stores are added while writes are in flight [W8].
    SwitchWithoutDrain,
    /// An entry is called whole before what was filled is synced [F2].
    CompleteWithoutSync,
    /// An entry is called whole while pulls are under way [F2].
    CompleteBeforePulled,
    /// Members of an open disk are switched without syncing those that it had [S4].
    SwitchWithoutSync,
    /// A store takes what stands there unproven for what it is to have [R1, F4].
    UnprovenCounts,
    /// A fill does not replace an unproven block of a later version [F4].
    DeadTailStands,
    /// Members that stay forget what stood there when another joined [R2].
    NothingKept,
    /// A replica is deleted when its store is a member no more, though others are filled from it [F2, I7].
    DeletedBeforeComplete,
    /// A replica is deleted although its store has joined again [I7].
    DropIgnoresRejoin,
    /// A store takes what comes from an epoch older than the one that it was shown [I3, S3].
    RefusesNoOlderEpoch,
    /// A sync that failed is taken for done [S2].
    FailedSyncForgiven,
    /// What the media return is not checked against what was written [R4].
    DamageServed,
    /// A swap whose outcome is unknown is taken for done [I8].
    UnknownIsSuccess,
    /// The watermark counts writes that not all members hold [W4].
    WatermarkRunsAhead,
    /// A take-over goes on with members that lost their tails, though others may have theirs [A4].
    SettlesWithoutWaiting,
    /// A store that shows fewer starts than before is let in [S1], and its writer does not ask what it forgot [S6].
    RolledBackLetIn,
    /// A member that was put back to an older copy of itself goes on as if it had all that it answered [S6].
    ForgotUnseen,
    /// A catalog that knows less than the stores is relied upon [I4, I8].
    DoubtIgnored,
    /// A catalog makes changes whoever leads, and whatever stands there by now [I8].
    CatalogUnguarded,
}

impl Plant {
    pub const ALL: [Plant; 35] = [
        Plant::AcknowledgeOnSend,
        Plant::FlushIgnoresIncarnation,
        Plant::EpochNotSynced,
        Plant::CloseWithoutSync,
        Plant::LostMarkCleared,
        Plant::LostSwapTakesOver,
        Plant::AnyVersionWins,
        Plant::PredecessorDropped,
        Plant::OlderReadUnbounded,
        Plant::AcknowledgeBeforeEject,
        Plant::NotReissued,
        Plant::NoBlockLock,
        Plant::DiscardDeletes,
        Plant::TailNotRewritten,
        Plant::SettleWithoutSync,
        Plant::FillWithNewVersion,
        Plant::SwitchWithoutDrain,
        Plant::CompleteWithoutSync,
        Plant::CompleteBeforePulled,
        Plant::SwitchWithoutSync,
        Plant::UnprovenCounts,
        Plant::DeadTailStands,
        Plant::NothingKept,
        Plant::DeletedBeforeComplete,
        Plant::DropIgnoresRejoin,
        Plant::RefusesNoOlderEpoch,
        Plant::FailedSyncForgiven,
        Plant::DamageServed,
        Plant::UnknownIsSuccess,
        Plant::WatermarkRunsAhead,
        Plant::SettlesWithoutWaiting,
        Plant::RolledBackLetIn,
        Plant::ForgotUnseen,
        Plant::DoubtIgnored,
        Plant::CatalogUnguarded,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Plants one bug, or none, in everything that this thread runs.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Plant>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted here.
#[cfg(feature = "planted-bugs")]
pub fn planted(bug: Plant) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted here: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn planted(_: Plant) -> bool {
    false
}
