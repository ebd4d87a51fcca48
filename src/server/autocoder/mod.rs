//! AutoCoder's dialect: a message of the PC and its one answer, over HTTP and over a WebSocket.
//!
//! ```text
//! message --> Task --> Book: new, running or answered? --> context by its budget --> engine
//! answer  <-- kept under its id, the same whichever way it is asked for again <--------+
//! ```
//!
//! `message` reads the two forms of a task, `context` chooses its chunks, `answer` has it written,
//! `book` keeps what came of it, `socket` and `desk` are the other doors.

mod answer;
mod book;
mod context;
mod desk;
mod message;
mod socket;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use self::answer::Answer;
pub(super) use self::book::Book;
use self::book::Claim;
use self::message::{Kind, Task};
use super::fields::Fields;
use super::jobs::tap;
use super::sockets::id_of;
use super::state::{Caller, Server};
use super::{ApiError, Gate};
use axum::extract::FromRequest;

/// What became of a task's context chunks.
const CONTEXT: HeaderName = HeaderName::from_static("x-jetforge-context");

/// The dialect's routes.
pub(super) fn routes() -> Router<Server> {
    Router::new()
        .route("/generate", post(generate))
        .route("/refactor", post(refactor))
        .route("/explain", post(explain))
        .route("/test", post(test))
        .route("/tasks", get(desk::tasks))
        .route("/tasks/{id}", get(desk::task))
}

/// Those that need more than the models.
pub(super) fn desk_routes() -> Router<Gate> {
    Router::new()
        .route("/ws", get(socket::open))
        .route("/feedback", get(desk::feedbacks).post(desk::feedback))
        .route("/logs", get(desk::logs))
        .route("/debug", get(desk::debug))
        .route("/debug/{id}", get(desk::debug_one))
}

async fn generate(State(server): State<Server>, caller: Caller, request: Request) -> Response {
    over_http(server, caller, request, None).await
}

async fn refactor(State(server): State<Server>, caller: Caller, request: Request) -> Response {
    over_http(server, caller, request, Some(Kind::Refactoring)).await
}

async fn explain(State(server): State<Server>, caller: Caller, request: Request) -> Response {
    over_http(server, caller, request, Some(Kind::Explanation)).await
}

async fn test(State(server): State<Server>, caller: Caller, request: Request) -> Response {
    over_http(server, caller, request, Some(Kind::Test)).await
}

/// Answers a body; `kind` is what the route stands for.
async fn over_http(
    server: Server,
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
        let (id, is_flat) = (task.id.clone(), task.is_flat);
        Ok((id, is_flat, ask(server, caller, task).await?))
    };
    match asked.await {
        Ok((id, is_flat, answer)) => {
            let mut response = Json(answer.to_json(&id, is_flat)).into_response();
            if let Ok(said) = HeaderValue::from_str(&answer.context.in_words()) {
                response.headers_mut().insert(CONTEXT, said);
            }
            response
        }
        Err(error) => with_id(error, id).into_response(),
    }
}

/// The answer to a task: written now, being written, or kept.
async fn ask(server: Server, caller: Caller, task: Task) -> Result<Arc<Answer>, ApiError> {
    let book = Arc::clone(&server.0.book);
    let ticket = match book.claim(&caller, &task)? {
        Claim::Answered(answer) => return Ok(answer),
        Claim::Running(waiting) => return waiting.answer().await,
        Claim::New(ticket) => ticket,
    };
    let waiting = ticket.waiting();
    let is_named = task.is_named;
    let work = async move {
        let result = answer::write(&server, &caller, &task).await;
        ticket.finish(result);
    };
    // Whoever named a task may come back for its answer; nobody can for one without a name. A job
    // is not left by its caller, and hears its own tokens only in its own task.
    match is_named && tap::current().is_none() {
        true => drop(tokio::spawn(work)),
        false => work.await,
    }
    waiting.answer().await
}

/// The error of the task `id`.
fn with_id(mut error: ApiError, id: Value) -> ApiError {
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
