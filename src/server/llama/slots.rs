//! `GET /slots`, and `POST /slots/{id}?action=save|restore|erase`.

use std::collections::HashMap;
use std::path::{Path as FilePath, PathBuf};
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use serde_json::{Value, json};

use super::fields::LlamaFields;
use super::params::Params;
use super::settings;
use crate::inference::{ModelInfo, SlotView};
use crate::server::fields::Fields;
use crate::server::generate::lease;
use crate::server::{ApiError, ServeOptions, Server};

/// Bytes of a file's name.
const NAME_BYTES_MAX: usize = 255;

/// `GET /slots`: what runs where. With `?fail_on_no_slot=1`, 503 while none is free.
pub async fn list(
    State(server): State<Server>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let serve = &server.0.options;
    if !serve.shows_slots {
        let message = "This server does not support slots endpoint. Start it with `--slots`";
        return Err(ApiError::not_supported(message));
    }
    let lease = lease(&server, query.get("model").map(String::as_str)).await?;
    let slots = lease.slots().await.map_err(ApiError::from)?;
    let is_full = slots.iter().all(|slot| slot.request_id.is_some());
    if is_full && query.get("fail_on_no_slot").is_some_and(|value| !value.is_empty()) {
        return Err(ApiError::unavailable("no slot available", std::time::Duration::from_secs(1)));
    }
    let info = lease.info();
    Ok(Json(slots.iter().map(|slot| view(slot, info, serve)).collect()))
}

fn view(slot: &SlotView, info: &ModelInfo, serve: &ServeOptions) -> Value {
    let mut view = json!({
        "id": slot.slot_idx,
        "n_ctx": info.n_ctx(),
        "speculative": serve.n_draft_max > 0,
        "is_processing": slot.request_id.is_some(),
    });
    let Some(request_id) = &slot.request_id else { return view };
    let n_predict = slot.n_predict.and_then(|n| i32::try_from(n).ok()).unwrap_or(-1);
    let params = Params { sampler: slot.sampler.clone(), n_predict, ..Params::default() };
    let n_remain = slot.n_predict.map_or(-1, |n| n as i64 - slot.n_generated as i64);
    view["id_task"] = json!(task_number(request_id));
    view["n_prompt_tokens"] = json!(slot.n_prompt);
    view["n_prompt_tokens_processed"] = json!(slot.n_past.min(slot.n_prompt));
    view["n_prompt_tokens_cache"] = json!(0);
    view["params"] = settings::brief(&params, serve, info);
    view["next_token"] = json!([{
        "has_next_token": true,
        "has_new_line": false,
        "n_remain": n_remain,
        "n_decoded": slot.n_generated,
    }]);
    view
}

/// llama.cpp's tasks have numbers, our requests have names: a number that stands for one.
fn task_number(request_id: &str) -> u32 {
    let fnv = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    request_id.bytes().fold(2_166_136_261, fnv) >> 1
}

/// `POST /slots/{id}?action=`: keeps a slot's cache in a file, brings it back, or forgets it.
pub async fn act(
    State(server): State<Server>,
    Path(slot): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let Some(dir) = &server.0.options.slot_save_dir else {
        let message = "This server does not support slots action. Start it with \
                       `--slot-save-path`";
        return Err(ApiError::not_supported(message));
    };
    let bad_slot = || ApiError::field("id_slot", "Invalid slot ID");
    let slot_idx: usize = slot.parse().map_err(|_| bad_slot())?;
    let action = query.get("action").map(String::as_str).unwrap_or_default();
    if !["save", "restore", "erase"].contains(&action) {
        return Err(ApiError::field("action", "Invalid action"));
    }
    let lease = lease(&server, query.get("model").map(String::as_str)).await?;
    if slot_idx >= lease.options().n_parallel {
        return Err(bad_slot());
    }
    if action == "erase" {
        let n = lease.erase_slot(slot_idx).await.map_err(ApiError::from)?;
        return Ok(Json(json!({"id_slot": slot_idx, "n_erased": n})));
    }
    let fields = Fields::parse(&body)?;
    let name = LlamaFields::new(&fields.0).str("filename")?.unwrap_or_default().to_owned();
    let path = file(dir, &name)?;
    let started = Instant::now();
    let ms = |started: Instant| started.elapsed().as_secs_f64() * 1e3;
    Ok(Json(match action {
        "save" => {
            let file = lease.save_slot(slot_idx, path).await.map_err(ApiError::from)?;
            json!({
                "id_slot": slot_idx,
                "filename": name,
                "n_saved": file.n_tokens,
                "n_written": file.n_bytes,
                "timings": {"save_ms": ms(started)},
            })
        }
        _ => {
            let file = lease.restore_slot(slot_idx, path).await.map_err(ApiError::from)?;
            json!({
                "id_slot": slot_idx,
                "filename": name,
                "n_restored": file.n_tokens,
                "n_read": file.n_bytes,
                "timings": {"restore_ms": ms(started)},
            })
        }
    }))
}

/// The file of this name in `dir`, and nowhere else.
fn file(dir: &FilePath, name: &str) -> Result<PathBuf, ApiError> {
    match is_plain(name) {
        true => Ok(dir.join(name)),
        false => Err(ApiError::field("filename", "Invalid filename")),
    }
}

/// Whether a name is one file's name on any system: no separators or their lookalikes, no control
/// characters, nothing that Windows strips or forbids, no `..`.
fn is_plain(name: &str) -> bool {
    let forbidden = |c: char| {
        c.is_control()
            || "/\\:*?\"<>|".contains(c)
            || ['\u{ff0e}', '\u{2215}', '\u{2216}', '\u{fffd}', '\u{feff}'].contains(&c)
    };
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.contains(forbidden)
        && !name.starts_with(' ')
        && !name.ends_with([' ', '.'])
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_directory() {
        for name in ["a.bin", "slot 1", "ä.ö", ".hidden", &"x".repeat(255)] {
            assert_eq!(file(FilePath::new("/d"), name).unwrap(), FilePath::new("/d").join(name));
        }
        for name in [
            "",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/b",
            "/a",
            "a\\b",
            "c:",
            "a\0",
            "a\n",
            "a ",
            " a",
            "a.",
            "\u{ff0e}\u{ff0e}",
            "a\u{2215}b",
            "a\u{2216}b",
            "\u{feff}a",
            "a|b",
            "a\u{85}",
            &"x".repeat(256),
        ] {
            assert!(file(FilePath::new("/d"), name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn tasks_have_numbers() {
        assert_ne!(task_number("a"), task_number("b"));
        assert!(task_number("x") <= i32::MAX as u32);
    }
}
