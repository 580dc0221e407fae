//! The route about verifying an open disk.

use super::operators::{Answer, Body, Desk, Named, bad_path};
use crate::api::{Verification, VerifyDisk};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use replicator::words::DiskId;

pub(super) fn routes() -> Router<Desk> {
    let route = get(verification).post(verify).delete(stop);
    Router::new().route("/v1/disks/{name}/verify", route)
}

async fn verify(
    State(desk): State<Desk>,
    name: Named,
    Body(request): Body<VerifyDisk>,
) -> Answer<Verification> {
    let name = name.map_err(bad_path)?.0;
    // As random as an id, and short enough for a log.
    let fresh = DiskId::random().as_u128() as u64;
    desk.ask(move |service, _| service.verify_disk(&name, &request, fresh))
        .await
}

async fn verification(State(desk): State<Desk>, name: Named) -> Answer<Verification> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.verification(&name))
        .await
}

async fn stop(State(desk): State<Desk>, name: Named) -> Answer<Verification> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.stop_verifying(&name))
        .await
}
