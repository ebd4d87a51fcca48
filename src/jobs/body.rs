//! What tells one body from another.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// A hash of an endpoint and the fields of a body, in any order. That it does not stream goes
/// without saying.
pub fn hash(endpoint: &str, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{endpoint}\n").into_bytes();
    match serde_json::from_slice::<Value>(body) {
        Ok(mut value) => {
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|name, value| name != "stream" || *value != false);
            }
            canonical(&value, &mut text);
        }
        Err(_) => text.extend_from_slice(body),
    }
    Sha256::digest(&text).to_vec()
}

fn canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            out.push(b'{');
            for (name, value) in fields {
                out.extend_from_slice(Value::from(name.as_str()).to_string().as_bytes());
                canonical(value, out);
                out.push(b',');
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for item in items {
                canonical(item, out);
                out.push(b',');
            }
            out.push(b']');
        }
        value => out.extend_from_slice(value.to_string().as_bytes()),
    }
}
