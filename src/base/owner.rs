//! Root at work in a folder of somebody else's: as that one, with no more rights than that one has.
//!
//! Whoever owns a folder may put links into it while root looks elsewhere, and a file that root
//! leaves there is one that its owner cannot read. So root does not write into such a folder, and
//! does not even open what is in it: for that time it is the folder's owner.
//!
//! The rights are those of the calling thread and of threads that it starts meanwhile.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Gid, Uid, getgroups};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::limits::GROUPS_MAX;

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Does `work` as the owner of `dir`, or of the nearest folder above it that is there, if root
/// would do it; else as who we are.
///
/// # Errors
/// If root may not become somebody else, or not itself again; then it stays who it became.
pub fn as_owner_of<T>(dir: &Path, work: impl FnOnce() -> T) -> io::Result<T> {
    let Some((uid, gid)) = other_owner(dir) else { return Ok(work()) };
    let (groups, own_gid) = (getgroups()?, rustix::process::getegid());
    set_thread_groups(&groups_of(uid, gid))?;
    set_thread_res_gid(None, gid, None)?;
    set_thread_res_uid(None, uid, None)?;
    let done = work();
    set_thread_res_uid(None, Uid::ROOT, None)?;
    set_thread_res_gid(None, own_gid, None)?;
    set_thread_groups(&groups)?;
    Ok(done)
}

/// Becomes the owner of `dir`, for good, if root calls. For a process of one thread.
///
/// # Errors
/// If root may not become somebody else.
pub fn become_owner_of(dir: &Path) -> io::Result<()> {
    let Some((uid, gid)) = other_owner(dir) else { return Ok(()) };
    set_thread_groups(&groups_of(uid, gid))?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// Who it is that root would have to become.
fn other_owner(dir: &Path) -> Option<(Uid, Gid)> {
    let found =
        dir.ancestors().find_map(|dir| std::fs::metadata(dir).ok()).filter(|_| is_root())?;
    let owner = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    (!owner.0.is_root()).then_some(owner)
}

/// The groups of a user, such as the one that may use the GPU.
fn groups_of(uid: Uid, gid: Gid) -> Vec<Gid> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let groups = groups_in(&read("/etc/passwd"), &read("/etc/group"), uid.as_raw());
    let groups = groups.into_iter().map(Gid::from_raw).filter(|own| *own != gid);
    [gid].into_iter().chain(groups.take(GROUPS_MAX - 1)).collect()
}

/// The numbers of the groups that name a user, by the files that tell of both.
fn groups_in(users: &str, groups: &str, uid: u32) -> Vec<u32> {
    let words = |line: &'_ str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let user = users.lines().map(words).find(|user| user.get(2) == Some(&uid.to_string()));
    let Some(name) = user.map(|mut user| user.swap_remove(0)) else { return Vec::new() };
    let has = |group: &Vec<String>| group.get(3).is_some_and(|us| us.split(',').any(|u| u == name));
    let groups = groups.lines().map(words).filter(has);
    groups.filter_map(|group| group[2].parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    /// A folder of somebody who is not root, who can reach it.
    fn theirs() -> Option<tempfile::TempDir> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        is_root().then(|| chown(dir.path(), Some(65_534), Some(65_534)).unwrap())?;
        Some(dir)
    }

    #[test]
    fn root_writes_as_who_owns_the_folder_and_is_root_again() {
        // Who is not root is nobody else anyway; the gate runs as root.
        let Some(dir) = theirs() else { return };
        let private = tempfile::tempdir().unwrap();
        let secret = private.path().join("secret");
        std::fs::write(&secret, "root's").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (file, link) = (dir.path().join("in/it/file"), dir.path().join("link"));
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        let read = as_owner_of(&dir.path().join("in/it"), || {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "theirs").unwrap();
            std::fs::read_to_string(&link)
        });
        assert_eq!(read.unwrap().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let owner = std::fs::metadata(&file).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (65_534, 65_534));
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "root's", "root again");
        assert!(is_root() && as_owner_of(private.path(), is_root).unwrap(), "root's own folder");
    }

    #[test]
    fn a_user_keeps_the_groups_that_name_it() {
        let users = "root:x:0:0::/:/bin/sh\njetforge:x:990:990::/:/x\n:::\n";
        let groups = "root:x:0:\nvideo:x:44:ada,jetforge\naudio:x:29:jetforger\njetforge:x:990:\n";
        assert_eq!(groups_in(users, groups, 990), [44]);
        assert_eq!(groups_in(users, groups, 1000), [0; 0]);
    }

    #[test]
    fn who_became_somebody_else_stays_it() {
        let Some(dir) = theirs() else { return };
        let path = dir.path().to_owned();
        // The rights are a thread's, so the other tests keep theirs.
        let left = std::thread::spawn(move || {
            become_owner_of(&path).unwrap();
            std::fs::write(path.join("file"), "").unwrap();
            set_thread_res_uid(None, Uid::ROOT, None).is_err() && !is_root()
        });
        assert!(left.join().unwrap());
        assert_eq!(std::fs::metadata(dir.path().join("file")).unwrap().uid(), 65_534);
        assert!(is_root());
    }
}
