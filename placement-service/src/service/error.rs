//! What an operator is told when something cannot be done: what, why, and what to try next.

use crate::api::ErrorBody;
use crate::catalog::CatalogError;

/// By what the caller can do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Ask for something else.
    Impossible,
    NoSuchThing,
    /// Ask again when something else has changed.
    NotNow,
    /// The catalog failed; whether a change was made is not known.
    Unavailable,
    /// It was accepted, and has not come about within the time given.
    NotYet,
    /// Another placement service leads: ask that one. Nothing was changed.
    Elsewhere,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {}; {}", .body.error, .body.why, .body.try_next)]
pub struct ServiceError {
    pub kind: Kind,
    pub body: ErrorBody,
}

impl ServiceError {
    pub(crate) fn new(
        kind: Kind,
        error: impl Into<String>,
        why: impl Into<String>,
        try_next: impl Into<String>,
    ) -> Self {
        ServiceError {
            kind,
            body: ErrorBody {
                error: error.into(),
                why: why.into(),
                try_next: try_next.into(),
                leader: None,
            },
        }
    }

    pub(super) fn contended(what: &str) -> Self {
        Self::new(
            Kind::NotNow,
            format!("{what} was not changed"),
            "others kept changing it at the same time",
            "try again",
        )
    }
}

impl From<CatalogError> for ServiceError {
    fn from(error: CatalogError) -> Self {
        tracing::error!("{error}");
        let (kind, try_next) = match error {
            CatalogError::TooLarge { .. } => (Kind::Impossible, "ask for something smaller"),
            CatalogError::NotLeader => (Kind::Elsewhere, "ask again"),
            _ => (
                Kind::Unavailable,
                "look at the placement service's log, then ask again to see what stands",
            ),
        };
        Self::new(
            kind,
            "the catalog could not do it",
            error.to_string(),
            try_next,
        )
    }
}
