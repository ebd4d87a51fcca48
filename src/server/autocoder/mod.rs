//! AutoCoder's dialect: a message of the PC and its one answer, over HTTP and over a WebSocket.
//!
//! ```text
//! message --> Task --> context by its budget --> engine --> answer
//! a named one is a job from its first moment on: its id stands for it and for its answer
//! ```
//!
//! `message` reads the two forms of a task, `context` chooses its chunks, `answer` has it written,
//! `contexts` remembers what became of chunks, `socket` and `desk` are the other doors. That a task
//! is taken in as a job, and answered from what is kept, is the promise of `jobs`, before this.

mod answer;
mod context;
mod contexts;
mod desk;
mod message;
mod socket;

use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

pub(super) use self::contexts::Contexts;
pub(super) use self::desk::Notes;
use self::message::{Kind, Task, check_id};
use super::fields::Fields;
use super::sockets::{id_in, id_of};
use super::state::{Caller, Server};
use super::{ApiError, Gate};

/// What became of a task's context chunks.
const CONTEXT: HeaderName = HeaderName::from_static("x-jetforge-context");

/// The dialect's routes.
pub(super) fn routes() -> Router<Server> {
    let route = |router: Router<Server>, (path, kind): (&str, Option<Kind>)| {
        let answer = move |server, caller, request| answer(server, caller, request, kind);
        router.route(path, post(answer))
    };
    PATHS.into_iter().fold(Router::new(), route)
}

/// Those that need more than the models.
pub(super) fn desk_routes() -> Router<Gate> {
    Router::new()
        .route("/ws", get(socket::open))
        .route("/tasks", get(desk::tasks))
        .route("/tasks/{id}", get(desk::task))
        .route("/feedback", get(desk::feedbacks).post(desk::feedback))
        .route("/logs", get(desk::logs))
        .route("/debug", get(desk::debug))
        .route("/debug/{id}", get(desk::debug_one))
}

/// The dialect's paths for a task, and the kind that each stands for.
const PATHS: [(&str, Option<Kind>); 4] = [
    ("/generate", None),
    ("/refactor", Some(Kind::Refactoring)),
    ("/explain", Some(Kind::Explanation)),
    ("/test", Some(Kind::Test)),
];

/// The kind that a path of a task stands for; `None` for a path of others.
fn kind_of(path: &str) -> Option<Option<Kind>> {
    PATHS.iter().find(|(own, _)| *own == path).map(|(_, kind)| *kind)
}

/// Whether a path takes tasks.
pub(super) fn is_path(path: &str) -> bool {
    kind_of(path).is_some()
}

/// What tells a task from others, whichever form and path it came in; `None` for what is none.
pub(super) fn digest(path: &str, body: &Map<String, Value>) -> Option<Vec<u8>> {
    let task = Task::read(Fields(body.clone()), kind_of(path)?).ok()?;
    Some(task.digest().to_vec())
}

/// Gives a task that has no id the name of its job, so that it is the same by every door.
pub(super) fn put_name(path: &str, body: &mut Map<String, Value>, name: &str) {
    if is_path(path) && check_id(Some(name)).is_ok() {
        body.entry("request_id").or_insert_with(|| name.into());
    }
}

/// Answers a body; `kind` is what the path stands for.
async fn answer(
    State(server): State<Server>,
    caller: Caller,
    request: Request,
    kind: Option<Kind>,
) -> Response {
    let fields = match Fields::from_request(request, &()).await {
        Ok(fields) => fields,
        Err(error) => return error.into_response(),
    };
    let id = id_of(fields.get("request_id"));
    let asked = async {
        let task = Task::read(fields, kind)?;
        let answer = answer::write(&server, &caller, &task).await?;
        Ok((task, answer))
    };
    let (task, answer) = match asked.await {
        Ok(answered) => answered,
        Err(error) => return with_id(error, id).into_response(),
    };
    let mut response = Json(answer.to_json(&task.id, task.is_flat)).into_response();
    if let Ok(said) = HeaderValue::from_str(&answer.context.in_words()) {
        response.headers_mut().insert(CONTEXT, said);
    }
    if task.is_named {
        server.0.contexts.put(caller.tenant, &task.id, answer.context);
    }
    response
}

/// Gives an error that was said elsewhere the id of the task in `body`.
pub(super) fn put_id(path: Option<&str>, body: &[u8], answer: &mut Response) {
    if let Some(error) = answer.extensions_mut().get_mut::<ApiError>()
        && path.is_some_and(is_path)
        && !error.extra.contains_key("request_id")
    {
        *error = with_id(error.clone(), id_in(body));
    }
}

/// The error of the task `id`.
pub(super) fn with_id(mut error: ApiError, id: Value) -> ApiError {
    error.extra.insert("request_id".to_owned(), id);
    error
}

/// An error as an answer; what is wrong stands in its metadata.
pub(super) fn error_json(error: &ApiError) -> Value {
    let mut said = Map::new();
    said.insert("code".into(), error.status.as_u16().into());
    said.insert("message".into(), error.message.as_str().into());
    said.insert("type".into(), error.kind.into());
    said.insert("param".into(), json!(error.param));
    said.extend(error.extra.iter().map(|(name, value)| (name.clone(), value.clone())));
    let id = said.remove("request_id").unwrap_or_else(|| "".into());
    json!({
        "request_id": id,
        "status": "error",
        "generated_code": "",
        "metadata": {
            "inference_time_ms": 0,
            "token_count": 0,
            "confidence_score": 0.0,
            "error": said,
        },
    })
}
