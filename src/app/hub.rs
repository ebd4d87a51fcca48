//! The hub, wired: the configured service with a hub before its dialects.

use std::sync::Arc;

use super::{App, AppError, Service};
use crate::base::limits::HUB_KEY_FILE_BYTES_MAX;
use crate::hub::{
    BackendOptions, Hub, HubConfig, HubError, Kind, LocalOptions, LocalView, Stocked,
};
use crate::store::Store;

/// Keys of backends that were given at start, in the clear.
#[derive(Clone, Debug, Default)]
pub struct BackendKeys {
    /// For appliances without a key of their own.
    pub nano: Option<String>,
    /// For servers outside without a key of their own.
    pub external: Option<String>,
}

impl App {
    /// The configured service with a hub before it. `api_keys` are what clients show, `keys` what
    /// the hub shows.
    ///
    /// # Errors
    /// As [`App::service`], and if an address or the file of keys is wrong.
    pub fn hub(
        self,
        api_keys: Vec<String>,
        keys: BackendKeys,
        on_panic: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Result<(Service, Arc<Hub>), AppError> {
        let config = self.config().hub.clone();
        let n_place = self.config().server.n_parallel;
        let is_spare = self.config().model.name.is_none();
        let backends = backends(&config, &keys)?;
        let mut service = self.service(api_keys, on_panic)?;
        let host = service.host.clone();
        let look = Box::new(move || {
            let stats: Vec<_> =
                host.engines().into_iter().map(|(_, engine)| engine.stats()).collect();
            let model = |hosted: crate::hosting::HostedModel| {
                let entry = hosted.entry;
                let names = std::iter::once(entry.name).chain(entry.aliases).collect();
                Stocked { names, n_ctx: entry.load.n_ctx.map(|n| n as usize) }
            };
            LocalView {
                stock: host.models().into_iter().map(model).collect(),
                n_place,
                n_busy: stats.iter().map(|stats| stats.n_running + stats.n_waiting).sum(),
            }
        });
        let local = config.local.then_some(LocalOptions { look, is_spare });
        let hub = Hub::new(config, backends, local)?;
        match service.store.as_ref().map_or(Ok(Vec::new()), Store::peers) {
            Ok(peers) => hub.meet(peers),
            Err(error) => {
                let when = "paired appliances are asked once it is there";
                service.notes.push(format!("{error}; {when}"));
            }
        }
        service.gate.forward_with(Arc::clone(&hub) as _);
        Ok((service, hub))
    }
}

fn backends(config: &HubConfig, keys: &BackendKeys) -> Result<Vec<BackendOptions>, HubError> {
    let kept = key_file(config)?;
    let of = |kind, addresses: &[String], key: &Option<String>| {
        let options = |address: &String| {
            let address = address.clone();
            let (name, certificate, node) = (None, None, None);
            let options = BackendOptions { kind, address, name, key: None, certificate, node };
            let own = kept.iter().find(|(whose, _)| options.is_at(whose).unwrap_or(false));
            let key = own.map(|(_, key)| key.clone()).or_else(|| key.clone());
            BackendOptions { key, ..options }
        };
        addresses.iter().map(options).collect::<Vec<_>>()
    };
    let mut all = of(Kind::Appliance, &config.nano, &keys.nano);
    all.extend(of(Kind::External, &config.external_llama, &keys.external));
    Ok(all)
}

/// Addresses and their keys.
fn key_file(config: &HubConfig) -> Result<Vec<(String, String)>, HubError> {
    let Some(path) = &config.key_file else { return Ok(Vec::new()) };
    let failed = |why: String| HubError::KeyFile { path: path.clone(), why };
    let text = super::service::read_file(path, HUB_KEY_FILE_BYTES_MAX)
        .map_err(|error| failed(error.to_string()))?;
    let lines = text.lines().map(str::trim);
    let lines = lines.enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(n, line)| {
            let (address, key) = line
                .split_once(char::is_whitespace)
                .ok_or_else(|| failed(format!("line {} has no address and key", n + 1)))?;
            Ok((address.to_owned(), key.trim().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_however_its_address_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "# ours\nhttp://NANO:8080/ jf-1\nhttp://x:1/v1 sk-2\n").unwrap();
        let config = HubConfig {
            nano: vec!["nano".into(), "other".into()],
            external_llama: vec!["http://x:1".into()],
            key_file: Some(path),
            ..HubConfig::default()
        };
        let keys = BackendKeys { nano: Some("jf-all".into()), external: None };
        let found = backends(&config, &keys).unwrap();
        let given = |own: &BackendOptions| own.key.clone().unwrap();
        let given: Vec<String> = found.iter().map(given).collect();
        assert_eq!(given, ["jf-1", "jf-all", "sk-2"]);
    }
}
