//! Files of ours, replaced whole: one is there with all of its bytes, or as it was before.
//!
//! ```text
//! new    NAME.<16 hex digits>.next beside it, of a name that nobody could have put a link at
//! write  as much as one likes
//! commit bytes to the disk -> renamed over the place -> the folder to the disk
//! drop   what is beside it goes
//! ```
//!
//! A power cut leaves what is beside the place behind; no reader takes it for a file of its own,
//! and [`sweep`] removes it.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

/// A file on its way to its place.
#[derive(Debug)]
pub struct Draft {
    file: File,
    beside: PathBuf,
    place: PathBuf,
    is_done: bool,
}

impl Draft {
    /// Begins a file of this mode, whatever the mask of the process.
    ///
    /// # Errors
    /// If the folder takes no file.
    pub fn new(place: &Path, mode: u32) -> io::Result<Draft> {
        let dir = folder_of(place);
        let name = place.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let beside = dir.join(format!("{name}.{}.next", chance()?));
        // A new file is never made through a link: the kernel refuses one that is there.
        let file = File::options().write(true).create_new(true).mode(mode).open(&beside)?;
        let draft = Draft { file, beside, place: place.to_owned(), is_done: false };
        // What the mask took. The file systems of sticks take no mode, and refuse to be given one.
        if draft.file.metadata()?.permissions().mode() & mode != mode {
            draft.file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(draft)
    }

    /// Where it is until it is done.
    pub fn beside(&self) -> &Path {
        &self.beside
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Puts it in its place, for good: also if the power goes now.
    ///
    /// # Errors
    /// If the disk does not take it; what was there before is then as it was.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.beside, &self.place)?;
        self.is_done = true;
        sync_folder_of(&self.place)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}

/// Whether an error says that there is no room, on the disk or for whoever writes.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Replaces a file whole; its folder is made. A link in its place is replaced, and never followed.
///
/// # Errors
/// If the folder takes no file; what was there before is then as it was.
pub fn replace(place: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    std::fs::create_dir_all(folder_of(place))?;
    let mut draft = Draft::new(place, mode)?;
    draft.write_all(bytes)?;
    draft.commit()
}

/// Opens a file to read where somebody else may have put something in its place: what is no plain
/// file, such as a link or a pipe, is not read and not waited for.
///
/// # Errors
/// If it cannot be opened; [`io::ErrorKind::IsADirectory`] of a folder.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    match file.metadata()? {
        about if about.is_file() => Ok(file),
        about if about.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file")),
    }
}

/// Removes a file for good: also if the power goes now. It may be gone already.
///
/// # Errors
/// If it stays, or the disk does not take that it goes.
pub fn remove_for_good(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_folder_of(path)),
    }
}

/// Removes a file, which may be gone already.
///
/// # Errors
/// If it stays.
pub fn remove(path: &Path) -> io::Result<()> {
    let is_gone = || {
        // A disk that cannot be written says so of what is not there as well.
        path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    match std::fs::remove_file(path) {
        Err(error) if !is_gone() => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file, or a folder with all that is in it, which may be gone already.
///
/// # Errors
/// If something stays.
pub fn discard(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path).is_ok_and(|about| about.is_dir()) {
        true => std::fs::remove_dir_all(path),
        false => remove(path),
    }
}

/// Age of a draft that nobody is writing any more.
const DRAFT_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Removes drafts that a loss of power left behind in a folder.
pub fn sweep(dir: &Path) {
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let since = file.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = since.and_then(|since| SystemTime::now().duration_since(since).ok());
        let is_draft = file.file_name().to_str().is_some_and(is_draft_name);
        if is_draft && age.is_some_and(|age| age > DRAFT_AGE_MAX) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

fn is_draft_name(name: &str) -> bool {
    let parts = name.strip_suffix(".next").and_then(|name| name.rsplit_once('.'));
    parts.is_some_and(|(_, chance)| {
        chance.len() == 16 && chance.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn sync_folder_of(place: &Path) -> io::Result<()> {
    match File::open(folder_of(place))?.sync_all() {
        // Some file systems of sticks know no such thing.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

fn folder_of(place: &Path) -> &Path {
    place.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name that nobody else has: two containers that share a folder can have one process id.
fn chance() -> io::Result<String> {
    let mut bytes = [0u8; 8];
    // So few come at once.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_link_is_replaced_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (dir.path().join("a.json"), dir.path().join("other"));
        std::fs::write(&other, "theirs").unwrap();
        // What others left where older versions of this program wrote.
        for name in ["a.new", "a.json.next", "a.json"] {
            std::os::unix::fs::symlink(&other, dir.path().join(name)).unwrap();
        }
        replace(&mine, b"ours", 0o600).unwrap();
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((text(&mine).as_str(), text(&other).as_str()), ("ours", "theirs"));
        assert!(std::fs::symlink_metadata(&mine).unwrap().is_file());
    }

    #[test]
    fn what_is_no_plain_file_is_not_read_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [plain, link, pipe] = ["plain", "link", "pipe"].map(|name| dir.path().join(name));
        std::fs::write(&plain, "text").unwrap();
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(io::read_to_string(open_plain(&plain).unwrap()).unwrap(), "text");
        assert!(open_plain(&link).is_err(), "a link");
        assert_eq!(open_plain(&pipe).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(open_plain(dir.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        for _ in 0..2 {
            remove_for_good(&plain).unwrap();
        }
        assert!(remove_for_good(dir.path()).is_err(), "a folder stays");
        assert!(!plain.exists() && dir.path().exists());
    }

    #[test]
    fn a_file_has_its_mode_and_one_that_is_not_done_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("in/a");
        for mode in [0o600, 0o644] {
            replace(&place, b"1", mode).unwrap();
            let found = std::fs::metadata(&place).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
        let mut draft = Draft::new(&place, 0o600).unwrap();
        draft.write_all(b"half").unwrap();
        drop(draft);
        assert_eq!(std::fs::read(&place).unwrap(), b"1");
        assert_eq!(names(&dir.path().join("in")), ["a"]);
        std::fs::create_dir(dir.path().join("full")).unwrap();
        assert!(replace(&dir.path().join("full"), b"1", 0o600).is_err(), "a folder stays");
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn what_a_loss_of_power_left_behind_goes_and_what_others_have_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("model.gguf");
        let (old, fresh) = (Draft::new(&place, 0o600).unwrap(), Draft::new(&place, 0o600).unwrap());
        let others = ["model.part", "model.next", "a.0123.next"].map(|name| {
            let file = File::create(dir.path().join(name)).unwrap();
            (file, dir.path().join(name))
        });
        let long_ago = SystemTime::now() - 2 * DRAFT_AGE_MAX;
        for file in others.iter().map(|(file, _)| file).chain([old.file()]) {
            file.set_modified(long_ago).unwrap();
        }
        sweep(dir.path());
        assert!(!old.beside().exists() && fresh.beside().exists());
        assert!(others.iter().all(|(_, path)| path.exists()));
    }
}
