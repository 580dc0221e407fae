//! Where a disk's extents should stand, and the steps from where they are: pure functions of the
//! fleet, the policies, the map and the place of the VM.
//!
//! - [`subject`]: what the planner is told of one disk. [`plan`]: what it answers.

mod plan;
mod subject;

pub use plan::{
    Action, Arrival, Crossing, Goal, GoalRange, Plan, RetiredCopy, Role, Shortfall, Step,
};
pub use subject::{Retired, Subject};
