//! Who is given the grant of a disk's epoch: the process that opened it, in the answer that says so, and
//! again whenever it reads its own record, since answers get lost.

use super::Service;
use super::swap::names;
use crate::catalog::CatalogError;
use crate::node_protocol::{Grant, Response};
use replicator::net::identity::{Claims, Identity};
use replicator::words::DiskRecord;

impl Service {
    /// The answer, with the grant in it if `who` holds the epoch.
    pub(super) fn with_grant(
        &self,
        who: &Identity,
        mut answer: Response,
    ) -> Result<Response, CatalogError> {
        if let Response::Record(granted) | Response::Swapped(granted) | Response::Conflict(granted) =
            &mut answer
            && let Some(credentials) = &self.credentials
            && let Some(claims) = self.claims(who, granted)?
        {
            match credentials.grant(&claims) {
                Ok(grant) => granted.grant = Grant(grant.into()),
                Err(fault) => {
                    tracing::error!(disk = %granted.name, "no grant can be made: {fault}")
                }
            }
        }
        Ok(answer)
    }

    /// What `who` may have in writing about a disk.
    fn claims(&self, who: &Identity, record: &DiskRecord) -> Result<Option<Claims>, CatalogError> {
        let Some(owner) = record.owner().filter(|owner| owner.host == who.host) else {
            return Ok(None);
        };
        // The host's name alone does not tell a node from an operator.
        let attachments = self.attachments(record.id)?;
        let attachment = attachments
            .as_ref()
            .and_then(|kept| kept.value.backend(owner.backend));
        let mine = attachment.is_some_and(|attachment| names(attachment, who));
        Ok(mine.then(|| Claims {
            disk: record.id,
            epoch: record.epoch,
            life: owner.life,
            holder: who.clone(),
        }))
    }
}
