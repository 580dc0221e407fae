//! HTTPS for operators: each route is one call of the service, some of them followed by a wait until
//! a node has done its part.

use super::tls::{Peer, TlsListener};
use super::{Config, ServerError, Shell, told_to_stop};
use crate::api::{
    self, ALPN, Attach, CreateDatacenter, CreateDisk, DEFAULT_WAIT_MS, Detach, MAX_BODY_BYTES,
    MAX_WAIT_MS, MoveStore, TakeWriter,
};
use crate::service::{AttachState, DetachState, Kind, Moment, Service, ServiceError};
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use replicator::net::identity::{Gate, Role};
use replicator::words::{BackendId, DiskId, DiskName, StoreId};
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// No request takes longer than the longest wait and this, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(MAX_WAIT_MS / 1000 + 10);
/// How long a rebuild waits for the stores.
const REBUILD_WAIT_MS: u64 = 15_000;
/// Silence of a node shows without any event; whoever waits looks again this often.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(super) async fn listen(
    config: &Config,
    shell: Shell,
    node_port: u16,
    mut stopped: watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> Result<SocketAddr, ServerError> {
    let failed = |source| ServerError::Listen {
        what: "TCP",
        address: config.operators,
        source,
    };
    let tcp = TcpListener::bind(config.operators).await.map_err(failed)?;
    let address = tcp.local_addr().map_err(failed)?;
    let gate = Gate::new(&config.credentials, &[Role::Operator], &[ALPN]);
    let local = Peer {
        address,
        identity: config.credentials.identity().clone(),
    };
    let listener = TlsListener::new(tcp, gate, local);
    let desk = Desk { shell, node_port };
    let service = routes(desk).into_make_service_with_connect_info::<Peer>();
    tasks.spawn(async move {
        let shutdown = async move { told_to_stop(&mut stopped).await };
        let served = axum::serve(listener, service)
            .with_graceful_shutdown(shutdown)
            .await;
        if let Err(error) = served {
            tracing::error!("serving operators: {error}");
        }
    });
    Ok(address)
}

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Desk {
    shell: Shell,
    node_port: u16,
}

pub(super) type Answer<T> = Result<Json<T>, Failed>;

fn routes(desk: Desk) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/datacenters", get(datacenters).post(create_datacenter))
        .route("/v1/hosts", get(hosts))
        .route("/v1/stores", get(stores))
        .route("/v1/stores/{id}/host", post(move_store))
        .route("/v1/backup", get(backup))
        .route("/v1/rebuild", post(rebuild))
        .merge(super::stores::routes())
        .route("/v1/disks", get(disks).post(create_disk))
        .route("/v1/disks/{name}", get(disk).delete(delete_disk))
        .route("/v1/disks/{name}/map", get(disk_map))
        .route("/v1/disks/{name}/attach", post(attach))
        .route("/v1/disks/{name}/detach", post(detach))
        .route("/v1/disks/{name}/writer", post(take_writer))
        .merge(super::moving::routes())
        .merge(super::verifying::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_route)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(bounded))
        .with_state(desk)
}

/// Bounds a request's time, and says in the log what was asked and how it ended.
async fn bounded(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = match timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failed(ServiceError::new(
            Kind::NotYet,
            "the request took too long",
            "it did not end in the longest time that a request may take",
            "look at what stands now, then ask again",
        ))
        .into_response(),
    };
    tracing::info!(peer = %peer.identity, from = %peer.address, status = response.status().as_u16(), "{asked}");
    response
}

async fn status(State(desk): State<Desk>) -> Answer<api::Status> {
    desk.ask(Service::status).await
}

async fn datacenters(State(desk): State<Desk>) -> Answer<Vec<api::Datacenter>> {
    desk.ask(Service::datacenters).await
}

async fn create_datacenter(
    State(desk): State<Desk>,
    Body(request): Body<CreateDatacenter>,
) -> Answer<api::Datacenter> {
    desk.ask(move |service, now| service.create_datacenter(&request.name, now))
        .await
}

async fn hosts(State(desk): State<Desk>) -> Answer<Vec<api::Host>> {
    desk.ask(Service::hosts).await
}

async fn stores(State(desk): State<Desk>) -> Answer<Vec<api::Store>> {
    desk.ask(Service::stores).await
}

async fn move_store(
    State(desk): State<Desk>,
    id: Result<Path<StoreId>, PathRejection>,
    Body(request): Body<MoveStore>,
) -> Answer<api::Store> {
    let id = id.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.move_store(id, &request, now))
        .await
}

/// The copy as text, so that what is written to a file is what was sent.
async fn backup(State(desk): State<Desk>) -> Answer<String> {
    desk.ask(Service::backup).await
}

async fn rebuild(
    State(desk): State<Desk>,
    Body(request): Body<api::Rebuild>,
) -> Answer<api::Rebuilt> {
    let until = deadline(Some(request.wait_ms.unwrap_or(REBUILD_WAIT_MS)));
    let Json(round) = desk.ask(|service, _| Ok(service.gather_records())).await?;
    // Stores that are up and do not answer are as good as silent, after a while.
    let gathered = desk.wait(until, move |service, now| {
        Ok(match service.is_gathered(round, now)? {
            true => Ok(()),
            false => Err(ServiceError::new(Kind::NotYet, "", "", "")),
        })
    });
    match gathered.await {
        Ok(_)
        | Err(Failed(ServiceError {
            kind: Kind::NotYet, ..
        })) => {}
        Err(failed) => return Err(failed),
    }
    desk.ask(move |service, now| service.rebuild(&request, now))
        .await
}

async fn disks(State(desk): State<Desk>) -> Answer<Vec<api::Disk>> {
    desk.ask(Service::disks).await
}

async fn create_disk(
    State(desk): State<Desk>,
    Body(request): Body<CreateDisk>,
) -> Answer<api::Created> {
    let id = DiskId::random();
    desk.ask(move |service, now| service.create_disk(&request, id, now))
        .await
}

async fn disk(State(desk): State<Desk>, name: Named) -> Answer<api::Disk> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.disk(&name, now)).await
}

async fn delete_disk(State(desk): State<Desk>, name: Named) -> Answer<api::Deleted> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, _| service.delete_disk(&name)).await
}

async fn disk_map(State(desk): State<Desk>, name: Named) -> Answer<api::DiskMap> {
    let name = name.map_err(bad_path)?.0;
    desk.ask(move |service, now| service.disk_map(&name, now))
        .await
}

async fn attach(
    State(desk): State<Desk>,
    name: Named,
    Body(request): Body<Attach>,
) -> Answer<api::Attached> {
    let name = name.map_err(bad_path)?.0;
    let began = Instant::now();
    let until = deadline(request.wait_ms);
    let take_over = request.take_over;
    let fresh = BackendId::random();
    let asked = name.clone();
    let Json(backend) = desk
        .ask(move |service, now| service.attach(&asked, &request, fresh, now))
        .await?;
    desk.wait(until, move |service, now| {
        Ok(match service.attach_state(&name, backend, now)? {
            // Where it is not open in time it is said so: the VM may start, and waits for it.
            AttachState::NotOpen(_) if take_over && Instant::now() < until => {
                Err(ServiceError::new(
                    Kind::NotYet,
                    format!("disk {name} is not open yet"),
                    "its former writer is being fenced, and its copies settled",
                    "it stays wanted: ask again to go on waiting",
                ))
            }
            AttachState::Ready(mut attached) | AttachState::NotOpen(mut attached) => {
                let took = began.elapsed().as_millis() as u64;
                attached.open_after_ms = attached.open.filter(|_| take_over).map(|_| took);
                Ok(attached)
            }
            AttachState::Waiting { status } => Err(ServiceError::new(
                Kind::NotYet,
                format!("disk {name} is not attached yet"),
                status,
                "it stays wanted: ask again to go on waiting, or detach it",
            )),
        })
    })
    .await
}

async fn detach(
    State(desk): State<Desk>,
    name: Named,
    Body(request): Body<Detach>,
) -> Answer<api::Detached> {
    let name = name.map_err(bad_path)?.0;
    let until = deadline(request.wait_ms);
    let asked = name.clone();
    let Json((backends, state)) = desk
        .ask(move |service, now| {
            let backends = service.attached_backends(&asked, &request)?;
            Ok((backends, service.detach(&asked, &request, now)?))
        })
        .await?;
    if let DetachState::Done(detached) = state {
        return Ok(Json(detached));
    }
    desk.wait(until, move |service, now| {
        Ok(match service.detach_state(&name, &backends, now)? {
            DetachState::Done(detached) => Ok(detached),
            DetachState::Waiting { status } => Err(not_detached(&name, status)),
        })
    })
    .await
}

fn not_detached(name: &DiskName, status: String) -> ServiceError {
    ServiceError::new(
        Kind::NotYet,
        format!("disk {name} is not detached yet"),
        status,
        "ask again to go on waiting; if its node is gone for good, detach with force",
    )
}

async fn take_writer(
    State(desk): State<Desk>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    name: Named,
    Body(request): Body<TakeWriter>,
) -> Answer<api::Writer> {
    let name = name.map_err(bad_path)?.0;
    let fresh = BackendId::random();
    let operator = peer.identity.host;
    let Json(mut writer) = desk
        .ask(move |service, now| service.take_writer(&name, &operator, &request, fresh, now))
        .await?;
    writer.node_port = desk.node_port;
    Ok(Json(writer))
}

async fn no_such_route(request: Request) -> Failed {
    Failed(ServiceError::new(
        Kind::NoSuchThing,
        "there is no such call",
        format!("{} {}", request.method(), request.uri().path()),
        "is `ukai` of another version than the placement service?",
    ))
}

impl Desk {
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Service, Moment) -> Result<T, ServiceError> + Send + 'static,
    ) -> Answer<T> {
        let leading = self.shell.leading().map_err(ServiceError::from)?;
        Ok(Json(leading.ask(call).await?))
    }

    /// [`Desk::ask`] of what is decided by which stores are there: one that has just begun to lead hears its nodes
    /// before, as it does before it decides anything by itself.
    pub(super) async fn ask_gathered<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Service, Moment) -> Result<T, ServiceError> + Send + 'static,
    ) -> Answer<T> {
        let gathered = self.wait(deadline(None), |service, now| {
            Ok(match service.fleet_is_known(now)? {
                true => Ok(()),
                false => Err(ServiceError::new(
                    Kind::NotYet,
                    "the nodes have not all been heard of",
                    "this placement service has just started",
                    "ask again in some seconds",
                )),
            })
        });
        let Json(()) = gathered.await?;
        self.ask(call).await
    }

    /// Asks again whenever something has changed, until it is done (the inner `Ok`) or time is up.
    async fn wait<T: Send + 'static>(
        &self,
        until: Instant,
        look: impl Fn(&Service, Moment) -> Result<Result<T, ServiceError>, ServiceError>
        + Clone
        + Send
        + 'static,
    ) -> Answer<T> {
        let leading = self.shell.leading().map_err(ServiceError::from)?;
        let mut changes = leading.service.changes();
        loop {
            let not_yet = match leading.ask(look.clone()).await? {
                Ok(done) => return Ok(Json(done)),
                Err(not_yet) => not_yet,
            };
            if Instant::now() >= until {
                return Err(not_yet.into());
            }
            let again = until.min(Instant::now() + LOOK_AGAIN);
            // However the wait ends, the next look decides.
            let _ = timeout_at(again, changes.changed()).await;
        }
    }
}

fn deadline(wait_ms: Option<u64>) -> Instant {
    let wait_ms = wait_ms.unwrap_or(DEFAULT_WAIT_MS).min(MAX_WAIT_MS);
    Instant::now() + Duration::from_millis(wait_ms)
}

pub(super) type Named = Result<Path<DiskName>, PathRejection>;

pub(super) fn bad_path(rejection: PathRejection) -> Failed {
    Failed(ServiceError::new(
        Kind::Impossible,
        "the request cannot be understood",
        rejection.body_text(),
        "check the name or id",
    ))
}

/// A JSON body; an empty one stands for `{}`.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failed;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failed> {
        let bad = |why: String| {
            Failed(ServiceError::new(
                Kind::Impossible,
                "the request cannot be understood",
                why,
                "is `ukai` of another version than the placement service?",
            ))
        };
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|rejection| bad(rejection.body_text()))?;
        let bytes = if bytes.is_empty() { b"{}" } else { &bytes[..] };
        Json::<T>::from_bytes(bytes)
            .map(|Json(body)| Body(body))
            .map_err(|rejection: JsonRejection| bad(rejection.body_text()))
    }
}

/// An error on its way to an operator.
pub(super) struct Failed(ServiceError);

impl From<ServiceError> for Failed {
    fn from(error: ServiceError) -> Self {
        Failed(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = match self.0.kind {
            Kind::Impossible => StatusCode::BAD_REQUEST,
            Kind::NoSuchThing => StatusCode::NOT_FOUND,
            Kind::NotNow => StatusCode::CONFLICT,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::NotYet => StatusCode::GATEWAY_TIMEOUT,
            Kind::Elsewhere => StatusCode::MISDIRECTED_REQUEST,
        };
        (status, Json(self.0.body)).into_response()
    }
}
