//! `POST /embedding`: texts to vectors, in llama-server's own shape.
//!
//! `[{"index": 0, "embedding": [[..]]}, ..]`: one vector to each text, or one to each token where
//! the model does not pool.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::fields::{LlamaFields, Outside, field_error};
use crate::inference::Pooling;
use crate::server::fields::Fields;
use crate::server::generate::{blocking, lease_of};
use crate::server::{ApiError, Server, prompts};

/// `POST /embedding`, `POST /embeddings`.
pub async fn embedding(
    State(server): State<Server>,
    fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let lease = lease_of(&server, &fields).await?;
    let info = std::sync::Arc::clone(lease.info());
    // An encoder does nothing else, so it needs no option.
    if !server.0.options.serves_embeddings && info.hparams().arch.causal {
        let message = "This server does not support embeddings. Start it with `--embeddings`";
        return Err(ApiError::not_supported(message));
    }
    let (prompts, norm) = blocking(move || {
        let fields = LlamaFields::new(&fields.0);
        let Some((name, value)) = fields.find(&["input", "content"]) else {
            return Err(ApiError::invalid("\"input\" or \"content\" must be provided"));
        };
        let format = fields.str("encoding_format")?.unwrap_or("float");
        if !["float", "base64"].contains(&format) {
            let message = "The format to return the embeddings in. Can be either float or base64";
            return Err(ApiError::field("encoding_format", message));
        }
        let range = (i64::from(i32::MIN), i64::from(i32::MAX));
        let norm = fields.int(&["embd_normalize"], 2, range, Outside::Refuse)?;
        if norm < -1 {
            return Err(field_error("embd_normalize", "it must be -1 or more"));
        }
        let prompts = prompts::prompts(value, name, info.tokenizer())?;
        if prompts.iter().any(Vec::is_empty) {
            return Err(ApiError::field(name, "Input content cannot be empty"));
        }
        Ok((prompts, norm))
    })
    .await?;
    let pooling = lease.info().pooling_of(server.0.options.pooling);
    let replies: Vec<_> = prompts.into_iter().map(|tokens| lease.embed(tokens, pooling)).collect();
    let mut answers = Vec::with_capacity(replies.len());
    for (index, reply) in replies.into_iter().enumerate() {
        let mut rows = reply.await.map_err(ApiError::from)?;
        if pooling != Pooling::None {
            rows.iter_mut().for_each(|row| normalize(row, norm));
        }
        answers.push(json!({"index": index, "embedding": rows}));
    }
    Ok(Json(Value::Array(answers)))
}

/// Divides a vector: -1 by nothing, 0 so that its largest value is the largest 16-bit integer, 1 by
/// the sum of its magnitudes, 2 by its length, above by its p-norm.
fn normalize(row: &mut [f32], norm: i64) {
    let magnitudes = row.iter().map(|x| f64::from(x.abs()));
    let divisor = match norm {
        ..0 => 1.0,
        0 => magnitudes.fold(0.0, f64::max) / 32_760.0,
        1 => magnitudes.sum(),
        2 => row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt(),
        p => magnitudes.map(|x| x.powf(p as f64)).sum::<f64>().powf(1.0 / p as f64),
    };
    let factor = if divisor > 0.0 { 1.0 / divisor } else { 0.0 };
    row.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms() {
        let with = |norm| {
            let mut row = [3.0, -4.0];
            normalize(&mut row, norm);
            row
        };
        assert_eq!(with(-1), [3.0, -4.0]);
        assert_eq!(with(0), [24_570.0, -32_760.0]);
        assert_eq!(with(1), [3.0 / 7.0, -4.0 / 7.0]);
        assert_eq!(with(2), [0.6, -0.8]);
        let p3 = 91f32.powf(1.0 / 3.0);
        assert!((with(3)[0] - 3.0 / p3).abs() < 1e-6);
        let mut zero = [0.0; 2];
        normalize(&mut zero, 2);
        assert_eq!(zero, [0.0; 2]);
    }
}
