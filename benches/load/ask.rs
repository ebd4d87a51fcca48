//! One streamed completion, timed, and held to what was asked for.

use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::wire::Client;

/// A completion.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its prompt, `[n_prompt]`.
    pub prompt: Vec<u32>,
    /// Tokens of its answer, neither more nor fewer.
    pub n_predict: usize,
    /// For the server's sampler.
    pub seed: u64,
    /// Of its sampler; 0 takes the likeliest token.
    pub temperature: f64,
}

/// How one went.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Which client asked.
    pub client_idx: usize,
    /// 200, another status, or 0 where there was none.
    pub status: u16,
    /// What was wrong with it.
    pub error: Option<String>,
    /// Seconds from asking to the first text.
    pub ttft_s: f64,
    /// Seconds from asking to the end.
    pub wait_s: f64,
    /// Seconds between texts.
    pub gaps_s: Vec<f64>,
    /// Tokens of the prompt that were cached.
    pub n_cached: usize,
    /// Tokens of the answer.
    pub n_generated: usize,
}

impl Ask {
    /// OpenAI's body, with `ignore_eos` as both servers know it.
    fn body(&self) -> Value {
        json!({
            "prompt": self.prompt,
            "max_tokens": self.n_predict,
            "stream": true,
            "stream_options": {"include_usage": true},
            "ignore_eos": true,
            "temperature": self.temperature,
            "seed": self.seed,
        })
    }

    /// Asks, since `since` (earlier than now where it had to wait for its turn).
    pub async fn run(&self, client: &Client, client_idx: usize, since: Instant) -> Sample {
        let mut sample = Sample { client_idx, ..Sample::default() };
        if let Err(error) = self.stream(client, since, &mut sample).await {
            sample.error = Some(format!("{error:#}"));
        }
        sample.wait_s = since.elapsed().as_secs_f64();
        sample
    }

    async fn stream(
        &self,
        client: &Client,
        since: Instant,
        sample: &mut Sample,
    ) -> anyhow::Result<()> {
        let mut answer = client.send("POST", "/v1/completions", Some(&self.body())).await?;
        sample.status = answer.status;
        if answer.status != 200 {
            let body = answer.bytes().await?;
            bail!("{}", String::from_utf8_lossy(&body).chars().take(200).collect::<String>());
        }
        let mut last_text: Option<Instant> = None;
        let mut usage = Value::Null;
        let mut is_done = false;
        while let Some(event) = answer.event().await? {
            let now = Instant::now();
            // Parsing every frame would take the time of the server beside it.
            if has_text(&event) {
                match last_text.replace(now) {
                    None => sample.ttft_s = (now - since).as_secs_f64(),
                    Some(last) => sample.gaps_s.push((now - last).as_secs_f64()),
                }
            }
            is_done = event == "[DONE]";
            if event.contains("\"usage\":{") {
                usage = serde_json::from_str(&event).context("the last frame")?;
            } else if event.contains("\"error\":") {
                bail!("{event}");
            }
        }
        if !is_done {
            bail!("the stream ended without [DONE]");
        }
        self.check(&usage["usage"], sample)
    }

    /// Says when each text came, for as long as anybody listens.
    pub async fn watch(&self, client: &Client, ends: &UnboundedSender<Instant>) {
        let Ok(mut answer) = client.send("POST", "/v1/completions", Some(&self.body())).await
        else {
            return;
        };
        while let Ok(Some(event)) = answer.event().await {
            if has_text(&event) && ends.send(Instant::now()).is_err() {
                return;
            }
        }
    }

    /// Whether the answer has all that was asked for.
    fn check(&self, usage: &Value, sample: &mut Sample) -> anyhow::Result<()> {
        let count = |value: &Value| value.as_u64().map(|n| n as usize);
        sample.n_generated = count(&usage["completion_tokens"]).context("no usage")?;
        sample.n_cached = count(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0);
        let n_prompt = count(&usage["prompt_tokens"]).context("no usage")?;
        if (n_prompt, sample.n_generated) != (self.prompt.len(), self.n_predict) {
            let asked = (self.prompt.len(), self.n_predict);
            bail!("{n_prompt} and {} tokens instead of {asked:?}", sample.n_generated);
        }
        Ok(())
    }
}

/// Whether a frame brings text; a token may end within a character and bring none.
fn has_text(event: &str) -> bool {
    event.contains("\"text\":\"") && !event.contains("\"text\":\"\"")
}
