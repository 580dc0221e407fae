//! The routes about what operators say of stores. Each is one call of the service.

use super::operators::{Answer, Body, Desk, bad_path};
use super::tls::Peer;
use crate::api::{self, DeclareLost, Evacuate};
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::routing::post;
use replicator::words::StoreId;

pub(super) fn routes() -> Router<Desk> {
    Router::new()
        .route("/v1/stores/{id}/lost", post(lost).delete(found))
        .route("/v1/stores/{id}/evacuate", post(evacuate).delete(stay))
}

type Id = Result<Path<StoreId>, PathRejection>;

async fn lost(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Id,
    Body(request): Body<DeclareLost>,
) -> Answer<api::Bereaved> {
    let id = id.map_err(bad_path)?.0;
    let by = peer.identity.host.to_string();
    desk.ask(move |service, now| service.declare_lost(id, &request, &by, now))
        .await
}

async fn found(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Id,
) -> Answer<api::Store> {
    let id = id.map_err(bad_path)?.0;
    let by = peer.identity.host.to_string();
    desk.ask(move |service, now| service.declare_found(id, &by, now))
        .await
}

async fn evacuate(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Id,
    Body(request): Body<Evacuate>,
) -> Answer<api::Evacuation> {
    let id = id.map_err(bad_path)?.0;
    let by = peer.identity.host.to_string();
    desk.ask_gathered(move |service, now| service.evacuate(id, &request, &by, now))
        .await
}

async fn stay(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    id: Id,
) -> Answer<api::Store> {
    let id = id.map_err(bad_path)?.0;
    let by = peer.identity.host.to_string();
    desk.ask(move |service, now| service.cancel_evacuation(id, &by, now))
        .await
}
