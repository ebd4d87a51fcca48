//! A download that ends with the right file under its name, or with a clear reason.
//!
//! ```text
//! 1  lock the .part file; what is in it counts only if its record names the same address and a
//!    strong ETag (or the caller knows the hash, which then judges the whole)
//! 2  GET with Range and If-Range from where it ends
//!      200  the file from the start: truncate
//!      206  the rest: offset, size and ETag must agree with what we have, else start over
//!      416  nothing left, or nonsense: start over unless the size is already right
//! 3  before the first byte is written: size as promised? disk large enough? letters GGUF?
//! 4  a broken or stalled connection goes back to 2 after a pause that doubles; the number of
//!    tries is bounded and starts again only when the file has really grown
//! 5  size, SHA-256, fsync, record, rename
//! ```
//!
//! It does not download in parallel: one connection fills the link of a Nano.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::{StatusCode, Uri, header};
use serde::{Deserialize, Serialize};

use super::LibraryError;
use super::digest::{check_magic, check_model, sha256_file};
use super::http::{Answer, Ask, Client, HttpError};
use super::record::{self, Beside, Record, beside};
use super::store::{check_space, model_name, open_part, shard_names};
use super::url;
use crate::base::limits::{
    PULL_ATTEMPTS_MAX, PULL_FIRST_ATTEMPTS_MAX, PULL_PAUSE_MS_MAX, PULL_PROGRESS_BYTES_MIN,
};

/// What to fetch.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The address; of a split model any shard's.
    pub url: String,
    /// The directory to put it in.
    pub dir: PathBuf,
    /// Its file name there.
    pub file_name: String,
    /// Its hash, when known.
    pub sha256: Option<String>,
    /// Its exact size, when known.
    pub size_bytes: Option<u64>,
    /// Whether a file that is there is replaced.
    pub force: bool,
}

/// How to fetch.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// More certificate authorities to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// Longest silence of the network.
    pub stall: Duration,
    /// The first pause between two tries; it doubles.
    pub pause: Duration,
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum PullEvent<'a> {
    /// A host is asked.
    Asking {
        /// Its name.
        host: &'a str,
    },
    /// The answer begins.
    Started {
        /// The file.
        file_name: &'a str,
        /// Where in the file.
        from_bytes: u64,
        /// The file's size, when the server tells.
        total_bytes: Option<u64>,
    },
    /// The file has this many bytes now.
    Received {
        /// Bytes so far.
        done_bytes: u64,
    },
    /// A try failed.
    Retrying {
        /// Why.
        reason: &'a str,
        /// The pause before the next.
        pause: Duration,
    },
    /// The hash is being computed.
    Hashing {
        /// Bytes so far.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
}

/// A model that came.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its name in the store.
    pub name: String,
    /// Its files, first shard first.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Hash of each file.
    pub sha256: Vec<String>,
    /// Whether a hash was known beforehand and agreed.
    pub is_checked: bool,
    /// Whether it was there already.
    pub was_here: bool,
}

/// Downloads a model, all shards of it. Blocks until it is done.
///
/// # Errors
/// See [`LibraryError`]; after `Network` the same call resumes.
pub fn pull(
    request: &PullRequest,
    options: &PullOptions,
    on_event: &mut dyn FnMut(PullEvent<'_>),
) -> Result<Pulled, LibraryError> {
    url::check_file_name(&request.file_name)?;
    let start = url::parse(&request.url)?;
    if !url::is_https(&start) && request.sha256.is_none() {
        return Err(LibraryError::BadUrl {
            url: request.url.clone(),
            reason: "plain http proves nothing: give the file's hash with --sha256".to_owned(),
        });
    }
    std::fs::create_dir_all(&request.dir).map_err(LibraryError::io("create", &request.dir))?;
    let client = Client::new(options.ca_file.as_deref(), options.stall)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LibraryError::io("start the network for", &request.dir))?;
    let mut pulled = Pulled {
        name: model_name(&request.file_name).to_owned(),
        files: Vec::new(),
        size_bytes: 0,
        sha256: Vec::new(),
        is_checked: request.sha256.is_some(),
        was_here: true,
    };
    for shard in shard_requests(request) {
        let uri = url::parse(&shard.url)?;
        let mut download = Download::open(&shard, options, uri, on_event)?;
        let (record, was_here) = runtime.block_on(download.run(&client))?;
        pulled.files.push(shard.dir.join(&shard.file_name));
        pulled.size_bytes += record.size_bytes;
        pulled.sha256.push(record.sha256);
        pulled.was_here &= was_here;
    }
    if pulled.files.len() > 1 {
        check_model(&pulled.files[0], &request.url)?;
    }
    Ok(pulled)
}

/// One request for each shard. Hash and size are known of a file, not of a set of shards.
fn shard_requests(request: &PullRequest) -> Vec<PullRequest> {
    let names = shard_names(&request.file_name);
    if names.len() == 1 || !request.url.contains(&request.file_name) {
        return vec![request.clone()];
    }
    let of = |name: &String| PullRequest {
        url: request.url.replace(&request.file_name, name),
        file_name: name.clone(),
        sha256: request.sha256.clone().filter(|_| *name == request.file_name),
        size_bytes: request.size_bytes.filter(|_| *name == request.file_name),
        ..request.clone()
    };
    names.iter().map(of).collect()
}

/// What an unfinished file belongs to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct PartRecord {
    url: String,
    etag: Option<String>,
    total_bytes: Option<u64>,
}

struct Download<'a> {
    request: &'a PullRequest,
    options: &'a PullOptions,
    uri: Uri,
    on_event: &'a mut dyn FnMut(PullEvent<'_>),
    target: PathBuf,
    beside: Beside,
    file: File,
    /// Bytes in the part file, all of them from the version that `part` names.
    position: u64,
    part: PartRecord,
    /// The furthest that the file has ever been, so that starting over is no progress.
    high_water: u64,
    /// Whether bytes of an earlier answer are in the file.
    is_resumed: bool,
}

impl<'a> Download<'a> {
    fn open(
        request: &'a PullRequest,
        options: &'a PullOptions,
        uri: Uri,
        on_event: &'a mut dyn FnMut(PullEvent<'_>),
    ) -> Result<Download<'a>, LibraryError> {
        let target = request.dir.join(&request.file_name);
        let beside = beside(&target);
        let file = open_part(&beside.part)?;
        let n_bytes = file.metadata().map_err(LibraryError::io("read", &beside.part))?.len();
        let part = record::read::<PartRecord>(&beside.part_record)
            .filter(|part| part.url == request.url)
            .filter(|part| part.etag.is_some() || request.sha256.is_some());
        let mut download = Download {
            request,
            options,
            uri,
            on_event,
            target,
            beside,
            file,
            position: n_bytes,
            high_water: n_bytes,
            is_resumed: n_bytes > 0,
            part: part.clone().unwrap_or_default(),
        };
        if part.is_none() || part.is_some_and(|p| p.total_bytes.is_some_and(|t| n_bytes > t)) {
            download.start_over()?;
        }
        let end = SeekFrom::Start(download.position);
        download.file.seek(end).map_err(LibraryError::io("read", &download.beside.part))?;
        Ok(download)
    }

    async fn run(&mut self, client: &Client) -> Result<(Record, bool), LibraryError> {
        if let Some(record) = self.already_here()? {
            return Ok((record, true));
        }
        let mut result = self.fetch_and_finish(client).await;
        // Old bytes of another version may be to blame: once more, from nothing.
        if matches!(result, Err(LibraryError::Mismatch { .. })) && self.is_resumed {
            self.start_over()?;
            self.high_water = 0;
            result = self.fetch_and_finish(client).await;
        }
        // Wrong bytes, or none, are worth nothing to the next call.
        let is_worthless =
            matches!(result, Err(LibraryError::Mismatch { .. } | LibraryError::NotAModel { .. }));
        if result.is_err() && (is_worthless || self.position == 0) {
            self.discard();
        }
        result.map(|record| (record, false))
    }

    async fn fetch_and_finish(&mut self, client: &Client) -> Result<Record, LibraryError> {
        self.fetch_all(client).await?;
        self.finish()
    }

    /// The record of the file that is there, unless it is to be replaced.
    fn already_here(&mut self) -> Result<Option<Record>, LibraryError> {
        let Ok(metadata) = std::fs::metadata(&self.target) else {
            return Ok(None);
        };
        if self.request.force {
            return Ok(None);
        }
        // Nothing was fetched; an empty part file would only confuse.
        if self.position == 0 {
            self.discard();
        }
        let record = match record::read::<Record>(&self.beside.record) {
            Some(record) if record.size_bytes == metadata.len() => record,
            _ => {
                let (sha256, size_bytes) = sha256_file(&self.target, &mut |_| {})?;
                Record { origin: String::new(), etag: None, size_bytes, sha256 }
            }
        };
        let is_other = self.request.sha256.as_ref().is_some_and(|s| !same_hash(s, &record.sha256));
        if is_other {
            return Err(LibraryError::Exists { path: self.target.clone() });
        }
        Ok(Some(record))
    }

    /// Tries until the file is whole or patience ends.
    async fn fetch_all(&mut self, client: &Client) -> Result<(), LibraryError> {
        let mut n_attempts = 0;
        let mut counted_from = self.high_water;
        loop {
            let (reason, retry_after) = match self.fetch(client).await {
                Ok(()) => return Ok(()),
                Err(HttpError::Fatal(error)) => return Err(error),
                Err(HttpError::Temporary { reason, retry_after }) => (reason, retry_after),
            };
            if self.high_water >= counted_from + PULL_PROGRESS_BYTES_MIN {
                counted_from = self.high_water;
                n_attempts = 0;
            }
            n_attempts += 1;
            let max =
                if self.high_water == 0 { PULL_FIRST_ATTEMPTS_MAX } else { PULL_ATTEMPTS_MAX };
            if n_attempts >= max {
                let url = self.request.url.clone();
                return Err(LibraryError::Network { url, n_attempts, reason });
            }
            let doubled = self.options.pause * (1 << (n_attempts - 1).min(16));
            let pause = retry_after
                .unwrap_or(doubled)
                .max(self.options.pause)
                .min(Duration::from_millis(PULL_PAUSE_MS_MAX));
            (self.on_event)(PullEvent::Retrying { reason: &reason, pause });
            tokio::time::sleep(pause).await;
        }
    }

    /// One try: ask for what is missing and write it.
    async fn fetch(&mut self, client: &Client) -> Result<(), HttpError> {
        if self.position > 0 && self.part.total_bytes == Some(self.position) {
            return Ok(());
        }
        let ask = Ask { from: self.position, if_range: self.part.etag.clone() };
        let on_event = &mut *self.on_event;
        let mut on_host = |host: &str| on_event(PullEvent::Asking { host });
        let mut answer = client.get(&self.uri, &ask, &mut on_host).await?;
        self.accept(&answer)?;
        self.check_promise()?;
        (self.on_event)(PullEvent::Started {
            file_name: &self.request.file_name,
            from_bytes: self.position,
            total_bytes: self.part.total_bytes,
        });
        self.is_resumed |= self.position > 0;
        let mut head = Vec::new();
        while let Some(data) = answer.next().await? {
            if self.position < 4 {
                head.extend(data.iter().take(4 - head.len()));
                if head.len() == 4 {
                    check_magic(&head, &self.request.url)?;
                }
            }
            self.write(&data)?;
        }
        match self.part.total_bytes {
            Some(total) if self.position < total => Err(HttpError::temporary(format!(
                "the connection ended at {} of {total} bytes",
                self.position
            ))),
            _ => Ok(()),
        }
    }

    /// Decides what an answer means for the bytes that are there.
    fn accept(&mut self, answer: &Answer) -> Result<(), HttpError> {
        let is_encoded = answer
            .header(header::CONTENT_ENCODING)
            .is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity"));
        if is_encoded {
            return Err(HttpError::temporary("the server compresses what must come as it is"));
        }
        let etag = answer.header(header::ETAG).filter(|e| is_strong(e)).map(str::to_owned);
        match answer.status {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.header(header::CONTENT_RANGE).and_then(parse_content_range);
                let is_ours = range.is_some_and(|(from, total)| {
                    from == self.position
                        && (self.part.total_bytes.is_none() || self.part.total_bytes == Some(total))
                });
                let is_same = self.part.etag.is_none() || etag.is_none() || etag == self.part.etag;
                if !is_ours || !is_same || self.position == 0 {
                    self.start_over()?;
                    return Err(HttpError::temporary("the file has changed on the server"));
                }
                self.part.total_bytes = range.map(|(_, total)| total);
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.start_over()?;
                return Err(HttpError::temporary("the server has no such range"));
            }
            _ => {
                self.start_over()?;
                let length = answer.header(header::CONTENT_LENGTH);
                self.part.total_bytes = length.and_then(|length| length.parse().ok());
                self.part.etag = etag;
            }
        }
        self.part.url.clone_from(&self.request.url);
        record::write(&self.beside.part_record, &self.part)?;
        Ok(())
    }

    /// Whether the size that the server names is right and fits.
    fn check_promise(&self) -> Result<(), LibraryError> {
        let Some(total) = self.part.total_bytes.or(self.request.size_bytes) else {
            return Ok(());
        };
        if let Some(expected) = self.request.size_bytes.filter(|expected| *expected != total) {
            return Err(self.mismatch("size", total.to_string(), expected.to_string()));
        }
        check_space(&self.request.dir, total.saturating_sub(self.position))
    }

    fn write(&mut self, data: &[u8]) -> Result<(), LibraryError> {
        let max = self.part.total_bytes.or(self.request.size_bytes).unwrap_or(u64::MAX);
        let end = self.position + data.len() as u64;
        if end > max {
            return Err(self.mismatch("size", format!("{end} or more"), max.to_string()));
        }
        self.file.write_all(data).map_err(|error| {
            if error.kind() == std::io::ErrorKind::StorageFull {
                let needed = self.part.total_bytes.unwrap_or(end).saturating_sub(self.position);
                if let Err(full) = check_space(&self.request.dir, needed) {
                    return full;
                }
            }
            LibraryError::io("write", &self.beside.part)(error)
        })?;
        self.position = end;
        self.high_water = self.high_water.max(end);
        (self.on_event)(PullEvent::Received { done_bytes: end });
        Ok(())
    }

    /// Empties the part file.
    fn start_over(&mut self) -> Result<(), LibraryError> {
        let failed = LibraryError::io("write", &self.beside.part);
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(failed)?;
        self.position = 0;
        self.is_resumed = false;
        self.part = PartRecord::default();
        Ok(())
    }

    /// Checks the whole file and gives it its name.
    fn finish(&mut self) -> Result<Record, LibraryError> {
        let part = &self.beside.part;
        self.file.sync_all().map_err(LibraryError::io("write", part))?;
        let total_bytes = self.position;
        let on_event = &mut *self.on_event;
        let (sha256, size_bytes) = sha256_file(part, &mut |done_bytes| {
            on_event(PullEvent::Hashing { done_bytes, total_bytes });
        })?;
        check_first_bytes(part, &self.request.url)?;
        let mismatch = match (self.request.size_bytes, &self.request.sha256) {
            (Some(size), _) if size != size_bytes => {
                Some(self.mismatch("size", size_bytes.to_string(), size.to_string()))
            }
            (_, Some(expected)) if !same_hash(expected, &sha256) => {
                Some(self.mismatch("SHA-256", sha256.clone(), expected.clone()))
            }
            _ => None,
        };
        if let Some(error) = mismatch {
            return Err(error);
        }
        // A shard alone cannot be read; `pull` reads them together.
        if shard_names(&self.request.file_name).len() == 1 {
            check_model(part, &self.request.url)?;
        }
        let origin = self.request.url.clone();
        let record = Record { origin, etag: self.part.etag.clone(), size_bytes, sha256 };
        record::publish(part, &self.target, &record)?;
        let _ = std::fs::remove_file(&self.beside.part_record);
        Ok(record)
    }

    fn discard(&self) {
        let _ = std::fs::remove_file(&self.beside.part);
        let _ = std::fs::remove_file(&self.beside.part_record);
    }

    fn mismatch(&self, property: &'static str, got: String, expected: String) -> LibraryError {
        LibraryError::Mismatch { what: self.request.url.clone(), property, got, expected }
    }
}

fn check_first_bytes(path: &Path, what: &str) -> Result<(), LibraryError> {
    use std::io::Read;
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut start))
        .map_err(LibraryError::io("read", path))?;
    check_magic(&start, what)
}

fn same_hash(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// Weak ETags promise the same meaning, not the same bytes.
fn is_strong(etag: &str) -> bool {
    etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"')
}

/// `bytes 5-9/10` gives 5 and 10.
fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, total): (u64, u64, u64) =
        (from.parse().ok()?, to.parse().ok()?, total.parse().ok()?);
    (from <= to && to < total).then_some((from, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["bytes */10", "bytes 9-5/10", "bytes 5-10/10", "5-9/10", "bytes 5-9/*"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn strong_etags() {
        assert!(is_strong("\"a\"") && !is_strong("W/\"a\"") && !is_strong("a"));
    }

    #[test]
    fn every_shard_is_asked_for() {
        let request = PullRequest {
            url: "https://h/m-00002-of-00003.gguf?x".into(),
            dir: "/d".into(),
            file_name: "m-00002-of-00003.gguf".into(),
            sha256: Some("ab".into()),
            size_bytes: None,
            force: false,
        };
        let shards = shard_requests(&request);
        assert_eq!(shards.len(), 3);
        assert_eq!(shards[0].url, "https://h/m-00001-of-00003.gguf?x");
        assert_eq!((shards[0].sha256.is_some(), shards[1].sha256.is_some()), (false, true));
    }
}
