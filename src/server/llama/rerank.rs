//! `POST /rerank` and its aliases: how well documents answer a query.
//!
//! Two shapes: Jina's (`documents` in, `{results: [{index, relevance_score}]}` out) and that of
//! Hugging Face's Text Embeddings Inference (`texts` in, `[{index, score}]` out).

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::fields::{LlamaFields, Outside};
use crate::inference::TokenId;
use crate::server::fields::Fields;
use crate::server::generate::{blocking, lease_of};
use crate::server::{ApiError, Server};

/// What is asked.
struct Query {
    /// Each document with the query, as tokens.
    pairs: Vec<Vec<TokenId>>,
    documents: Vec<String>,
    n_top: usize,
    is_tei: bool,
    return_text: bool,
    /// What the client calls the model.
    model: Option<String>,
}

/// `POST /rerank`, `/reranking`, `/v1/rerank`, `/v1/reranking`.
pub async fn rerank(State(server): State<Server>, fields: Fields) -> Result<Json<Value>, ApiError> {
    let lease = lease_of(&server, &fields).await?;
    let info = std::sync::Arc::clone(lease.info());
    // A model with a head for scores does nothing else, so it needs no option.
    if !info.is_reranker() {
        let message = "This server does not support reranking. Start it with `--reranking`";
        return Err(ApiError::not_supported(message));
    }
    let mut query = blocking(move || {
        let mut query = parse(LlamaFields::new(&fields.0))?;
        let text = fields.str("query")?.unwrap_or_default();
        let pair = |document: &String| {
            let tokens = info.tokenizer().pair_prompt(text, document);
            tokens.map_err(|error| ApiError::field("documents", error.to_string()))
        };
        query.pairs = query.documents.iter().map(pair).collect::<Result<_, _>>()?;
        Ok(query)
    })
    .await?;
    let pairs = std::mem::take(&mut query.pairs);
    let n_tokens: usize = pairs.iter().map(Vec::len).sum();
    let replies: Vec<_> = pairs.into_iter().map(|tokens| lease.rerank(tokens)).collect();
    let mut scores = Vec::with_capacity(replies.len());
    for reply in replies {
        scores.push(reply.await.map_err(ApiError::from)?);
    }
    Ok(Json(answer(&query, &scores, n_tokens, lease.name())))
}

fn parse(fields: LlamaFields<'_>) -> Result<Query, ApiError> {
    match fields.get("query") {
        None => return Err(ApiError::field("query", "\"query\" must be provided")),
        Some(query) if !query.is_string() => {
            return Err(ApiError::field("query", "\"query\" must be a string"));
        }
        Some(_) => {}
    }
    let is_tei = fields.get("texts").is_some();
    let missing = "\"documents\" must be a non-empty string array";
    let documents = match fields.strings("documents")? {
        Some(documents) => documents,
        None => fields.strings("texts")?.unwrap_or_default(),
    };
    if documents.is_empty() {
        return Err(ApiError::field("documents", missing));
    }
    let n = documents.len() as i64;
    let n_top = fields.int(&["top_n"], n, (0, n), Outside::Clamp)? as usize;
    let return_text = fields.bool("return_text", false)?;
    let model = fields.str("model")?.map(str::to_owned);
    Ok(Query { pairs: Vec::new(), documents, n_top, is_tei, return_text, model })
}

/// The best documents, best first.
fn answer(query: &Query, scores: &[f32], n_tokens: usize, model: &str) -> Value {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(query.n_top);
    let label = if query.is_tei { "score" } else { "relevance_score" };
    let result = |index: usize| {
        let mut result = json!({"index": index, label: scores[index]});
        if query.is_tei && query.return_text {
            result["text"] = json!(query.documents[index]);
        }
        result
    };
    let results: Vec<Value> = order.into_iter().map(result).collect();
    if query.is_tei {
        return Value::Array(results);
    }
    json!({
        "model": query.model.as_deref().unwrap_or(model),
        "object": "list",
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        "results": results,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(body: Value) -> Result<Query, String> {
        parse(LlamaFields::new(body.as_object().unwrap())).map_err(|error| error.message)
    }

    #[test]
    fn the_best_come_first_in_either_shape() {
        let jina = query(json!({"query": "q", "documents": ["a", "b", "c"], "top_n": 2})).unwrap();
        let answer_json = answer(&jina, &[-1.0, 3.0, 0.5], 12, "m");
        assert_eq!(answer_json["results"][0], json!({"index": 1, "relevance_score": 3.0}));
        assert_eq!(answer_json["results"].as_array().unwrap().len(), 2);
        assert_eq!(answer_json["usage"]["prompt_tokens"], 12);
        let tei = query(json!({"query": "q", "texts": ["a", "b"], "return_text": true})).unwrap();
        let answer_json = answer(&tei, &[-1.0, 3.0], 12, "m");
        assert_eq!(answer_json[0], json!({"index": 1, "score": 3.0, "text": "b"}));
    }

    #[test]
    fn what_is_missing_is_said() {
        let error = |body| query(body).map(|_| ()).unwrap_err();
        assert_eq!(error(json!({"documents": ["a"]})), "\"query\" must be provided");
        assert_eq!(error(json!({"query": 1, "documents": ["a"]})), "\"query\" must be a string");
        assert!(error(json!({"query": "a", "documents": []})).contains("non-empty string array"));
        assert!(error(json!({"query": "a", "documents": [1]})).contains("must be string"));
        assert_eq!(query(json!({"query": "a", "documents": ["a"], "top_n": 99})).unwrap().n_top, 1);
    }
}
