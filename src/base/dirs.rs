//! One table of directories, for a person and for the service.
//!
//! ```text
//!            person (XDG)                          service
//! config     $XDG_CONFIG_HOME/jetforge             /etc/jetforge
//! state      $XDG_STATE_HOME/jetforge              /var/lib/jetforge
//! cache      $XDG_CACHE_HOME/jetforge              /var/cache/jetforge
//! models     $XDG_DATA_HOME/jetforge/models        /var/lib/jetforge/models
//! root's     as the state                          /var/lib/jetforge-root
//! ```
//!
//! On a machine with the packaged service root is its administrator, so what root does there is
//! about the service, unless the environment says otherwise. The service's directories belong to
//! its user, whom root does not trust: what root has to find again as it was left lies apart.
//!
//! The defaults of the XDG variables are `~/.config`, `~/.local/state`, `~/.cache` and
//! `~/.local/share`. Nothing is created here: the room that writes creates its own directory.

use std::path::{Path, PathBuf};

use crate::base::config::drop_ins;
use crate::base::env::Env;
use crate::base::owner;

/// Where the package puts the service's unit.
const UNIT: &str = "/lib/systemd/system/jetforge.service";

/// Whose directories are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Somebody at a terminal: directories under the home directory.
    Person,
    /// The system service: directories under `/etc` and `/var`.
    Service,
}

impl Role {
    /// The variable that chooses the role; without it, root is the service where the package is
    /// installed, and everybody else a person.
    pub const ENV: &'static str = "JETFORGE_ROLE";

    /// Reads the role from the environment.
    ///
    /// # Errors
    /// When the variable holds another word.
    pub fn from_env(env: &Env) -> Result<Role, DirsError> {
        match env.get(Role::ENV).map(|v| v.to_string_lossy().into_owned()).as_deref() {
            None => Ok(Role::usual(owner::is_root(), Path::new(UNIT))),
            Some("person") => Ok(Role::Person),
            Some("service") => Ok(Role::Service),
            Some(other) => Err(DirsError::UnknownRole { role: other.to_owned() }),
        }
    }

    /// Who is meant where nobody says it.
    fn usual(is_root: bool, unit: &Path) -> Role {
        if is_root && unit.exists() { Role::Service } else { Role::Person }
    }

    /// `person` or `service`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Person => "person",
            Role::Service => "service",
        }
    }
}

/// Where things are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Configuration, written by people and read by the program.
    pub config: PathBuf,
    /// What must survive a restart.
    pub state: PathBuf,
    /// What root has to find again as it was left: marks, what it restores, journals of the board.
    /// For a person the state directory.
    pub root_state: PathBuf,
    /// What can be made again.
    pub cache: PathBuf,
    /// Models that were pulled or imported.
    pub models: PathBuf,
    /// Models that the machine's service holds, read-only for a person.
    pub models_shared: Option<PathBuf>,
}

/// Why the directories cannot be known.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DirsError {
    /// Neither `HOME` nor the XDG variable is set.
    #[error("cannot find the {what} directory: set HOME or {variable} to an absolute path")]
    NoHome {
        /// Which directory was wanted.
        what: &'static str,
        /// The variable that would also do.
        variable: &'static str,
    },
    /// `JETFORGE_ROLE` holds something else.
    #[error("JETFORGE_ROLE is {role:?}; it may be person or service")]
    UnknownRole {
        /// What it holds.
        role: String,
    },
}

impl Dirs {
    /// The directories of `role`.
    ///
    /// # Errors
    /// For a person without a home directory.
    pub fn new(role: Role, env: &Env) -> Result<Dirs, DirsError> {
        match role {
            Role::Service => Ok(Dirs::service()),
            Role::Person => Dirs::person(env),
        }
    }

    fn service() -> Dirs {
        Dirs {
            config: "/etc/jetforge".into(),
            state: "/var/lib/jetforge".into(),
            root_state: "/var/lib/jetforge-root".into(),
            cache: "/var/cache/jetforge".into(),
            models: "/var/lib/jetforge/models".into(),
            models_shared: None,
        }
    }

    fn person(env: &Env) -> Result<Dirs, DirsError> {
        let home = env.absolute_path("HOME");
        let find = |what, variable, below_home: &str| {
            env.absolute_path(variable)
                .or_else(|| home.as_ref().map(|h| h.join(below_home)))
                .map(|base| base.join("jetforge"))
                .ok_or(DirsError::NoHome { what, variable })
        };
        let config = find("configuration", "XDG_CONFIG_HOME", ".config")?;
        let state = find("state", "XDG_STATE_HOME", ".local/state")?;
        Ok(Dirs {
            config,
            root_state: state.clone(),
            state,
            cache: find("cache", "XDG_CACHE_HOME", ".cache")?,
            models: find("models", "XDG_DATA_HOME", ".local/share")?.join("models"),
            models_shared: Some("/var/lib/jetforge/models".into()),
        })
    }

    /// The configuration files, weakest first: `config.toml`, `config.yaml`, then what is in
    /// `config.d` by name. Only files that exist are listed.
    pub fn config_files(&self) -> Vec<PathBuf> {
        let names = ["config.toml", "config.yaml", "config.yml"];
        let files = names.map(|name| self.config.join(name));
        let mut files: Vec<PathBuf> = files.into_iter().filter(|path| path.exists()).collect();
        files.extend(drop_ins(&self.config.join("config.d")));
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_gets_xdg_directories() {
        let env: Env =
            [("HOME", "/home/ada"), ("XDG_CACHE_HOME", "/fast"), ("XDG_STATE_HOME", "x")]
                .into_iter()
                .collect();
        let dirs = Dirs::new(Role::Person, &env).unwrap();
        assert_eq!(dirs.config, Path::new("/home/ada/.config/jetforge"));
        assert_eq!(dirs.cache, Path::new("/fast/jetforge"));
        assert_eq!(dirs.state, Path::new("/home/ada/.local/state/jetforge"), "relative is ignored");
        assert_eq!(dirs.models, Path::new("/home/ada/.local/share/jetforge/models"));
    }

    #[test]
    fn the_service_needs_no_home() {
        let dirs = Dirs::new(Role::Service, &Env::default()).unwrap();
        assert_eq!(dirs.models, Path::new("/var/lib/jetforge/models"));
        let error = Dirs::new(Role::Person, &Env::default()).unwrap_err();
        assert!(error.to_string().contains("XDG_CONFIG_HOME"));
    }

    #[test]
    fn the_role_is_one_of_two_words() {
        let env = |v: &str| [("JETFORGE_ROLE", v)].into_iter().collect::<Env>();
        assert_eq!(Role::from_env(&env("service")), Ok(Role::Service));
        assert_eq!(Role::from_env(&env("person")), Ok(Role::Person));
        assert!(Role::from_env(&env("root")).is_err());
    }

    #[test]
    fn root_of_a_machine_with_the_packaged_service_is_its_administrator() {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("jetforge.service");
        assert_eq!(Role::usual(true, &unit), Role::Person);
        std::fs::write(&unit, "").unwrap();
        assert_eq!(Role::usual(true, &unit), Role::Service);
        assert_eq!(Role::usual(false, &unit), Role::Person);
    }

    #[test]
    fn what_root_relies_on_lies_where_the_service_cannot_write() {
        let dirs = Dirs::new(Role::Service, &Env::default()).unwrap();
        assert!(!dirs.root_state.starts_with(&dirs.state), "{}", dirs.root_state.display());
        let env: Env = [("HOME", "/home/ada")].into_iter().collect();
        let dirs = Dirs::new(Role::Person, &env).unwrap();
        assert_eq!(dirs.root_state, dirs.state);
    }
}
