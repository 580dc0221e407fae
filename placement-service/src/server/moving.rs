//! The routes about where disks stand: moves, policies, pins, explanations. Each is one call of the service.

use super::operators::{Answer, Body, Desk, Named, bad_path};
use super::tls::Peer;
use crate::api::{self, AddCopy, AddPin, ApplyPolicy, ControlMove, DropCopy, LiftPins};
use crate::api::{MoveDisk, PolicyText, PrepareDisk, SetClass};
use crate::planner::{Explanation, Plan};
use crate::policy::Pin;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::routing::{get, post, put};
use replicator::words::DatacenterName;

pub(super) fn routes() -> Router<Desk> {
    Router::new()
        .route("/v1/links", get(links))
        .route("/v1/moves", get(moves))
        .route("/v1/disks/{name}/plan", get(plan))
        .route("/v1/disks/{name}/explain", get(explain))
        .route("/v1/disks/{name}/deletions", get(deletions))
        .route("/v1/disks/{name}/class", put(set_class))
        .route(
            "/v1/disks/{name}/pins",
            get(pins).post(add_pin).delete(lift_pins),
        )
        .route(
            "/v1/disks/{name}/move",
            get(disk_move).post(move_disk).patch(control_move),
        )
        .route("/v1/disks/{name}/copies", post(add_copy).delete(drop_copy))
        .route("/v1/disks/{name}/prepare", post(prepare))
        .route("/v1/policies", get(policies))
        .route("/v1/policies/{datacenter}", get(policy).put(apply_policy))
        .route("/v1/policies/{datacenter}/check", post(check_policy))
        .route("/v1/policies/{datacenter}/diff", post(diff_policy))
}

async fn links(State(desk): State<Desk>) -> Answer<Vec<api::Link>> {
    desk.ask(|service, _| service.links()).await
}

async fn moves(State(desk): State<Desk>) -> Answer<api::Moves> {
    desk.ask(|service, now| service.moves(now)).await
}

async fn plan(State(desk): State<Desk>, name: Named) -> Answer<Plan> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.plan(&name, now)).await
}

async fn explain(State(desk): State<Desk>, name: Named) -> Answer<Explanation> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.explain(&name, now))
        .await
}

async fn deletions(State(desk): State<Desk>, name: Named) -> Answer<Vec<api::Deletion>> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.deletions(&name)).await
}

async fn set_class(
    State(desk): State<Desk>,
    name: Named,
    Body(request): Body<SetClass>,
) -> Answer<api::Disk> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.set_class(&name, &request, now))
        .await
}

async fn pins(State(desk): State<Desk>, name: Named) -> Answer<Vec<Pin>> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.pins(&name)).await
}

async fn add_pin(
    State(desk): State<Desk>,
    name: Named,
    Body(request): Body<AddPin>,
) -> Answer<Vec<Pin>> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.add_pin(&name, &request))
        .await
}

async fn lift_pins(
    State(desk): State<Desk>,
    name: Named,
    Body(request): Body<LiftPins>,
) -> Answer<Vec<Pin>> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.lift_pins(&name, &request))
        .await
}

async fn disk_move(State(desk): State<Desk>, name: Named) -> Answer<api::Move> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.disk_move(&name, now))
        .await
}

async fn move_disk(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    name: Named,
    Body(request): Body<MoveDisk>,
) -> Answer<api::Ordered> {
    let name = name.map_err(bad_path)?.0;
    let by = peer.identity.host;
    desk.ask_gathered(move |service, now| service.move_disk(&name, &request, by.as_str(), now))
        .await
}

async fn control_move(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    name: Named,
    Body(request): Body<ControlMove>,
) -> Answer<api::Move> {
    let name = name.map_err(bad_path)?.0;
    let by = peer.identity.host;
    desk.ask(move |service, now| service.control_move(&name, request.control, by.as_str(), now))
        .await
}

async fn add_copy(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    name: Named,
    Body(request): Body<AddCopy>,
) -> Answer<api::Ordered> {
    let name = name.map_err(bad_path)?.0;
    let by = peer.identity.host;
    desk.ask_gathered(move |service, now| service.add_copy(&name, &request, by.as_str(), now))
        .await
}

async fn drop_copy(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    name: Named,
    Body(request): Body<DropCopy>,
) -> Answer<api::Ordered> {
    let name = name.map_err(bad_path)?.0;
    let by = peer.identity.host;
    desk.ask_gathered(move |service, now| service.drop_copy(&name, &request, by.as_str(), now))
        .await
}

async fn prepare(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    name: Named,
    Body(request): Body<PrepareDisk>,
) -> Answer<api::Move> {
    let name = name.map_err(bad_path)?.0;
    let by = peer.identity.host;
    desk.ask_gathered(move |service, now| service.prepare_disk(&name, &request, by.as_str(), now))
        .await
}

type NamedDatacenter = Result<Path<DatacenterName>, PathRejection>;

async fn policies(State(desk): State<Desk>) -> Answer<Vec<api::PolicyView>> {
    desk.ask(|service, _| service.policy_views()).await
}

async fn policy(State(desk): State<Desk>, name: NamedDatacenter) -> Answer<api::PolicyView> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.policy_view(&name)).await
}

async fn check_policy(
    State(desk): State<Desk>,
    name: NamedDatacenter,
    Body(request): Body<PolicyText>,
) -> Answer<api::PolicyCheck> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.check_policy(&name, &request, now))
        .await
}

async fn diff_policy(
    State(desk): State<Desk>,
    name: NamedDatacenter,
    Body(request): Body<PolicyText>,
) -> Answer<api::PolicyDiff> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.diff_policy(&name, &request, now))
        .await
}

async fn apply_policy(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    name: NamedDatacenter,
    Body(request): Body<ApplyPolicy>,
) -> Answer<api::PolicyDiff> {
    let name = name.map_err(bad_path)?.0;
    let by = peer.identity.host;
    desk.ask(move |service, now| service.apply_policy(&name, &request, by.as_str(), now))
        .await
}
