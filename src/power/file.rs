//! Files of ours, replaced whole.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes a file beside its place and moves it there, so that it is whole after a crash too.
///
/// What lies beside it goes first and a new file is made, since whoever may write into the folder
/// could have left a link there to a file of somebody else.
///
/// # Errors
/// If the folder takes no file.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A new file is never made through a link: the kernel refuses one that is there.
    let mut file = File::options().write(true).create_new(true).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_and_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (dir.path().join("a.json"), dir.path().join("other"));
        std::fs::write(&other, "theirs").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join("a.new")).unwrap();
        replace(&mine, b"ours").unwrap();
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((text(&mine).as_str(), text(&other).as_str()), ("ours", "theirs"));
        std::os::unix::fs::symlink(&other, dir.path().join("b.json")).unwrap();
        replace(&dir.path().join("b.json"), b"ours").unwrap();
        assert_eq!(text(&other), "theirs");
    }
}
