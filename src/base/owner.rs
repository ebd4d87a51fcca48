//! Root at work in a folder of somebody else's: as that one, with no more rights than that one has.
//!
//! Whoever owns a folder may put links into it while root looks elsewhere, and a file that root
//! leaves there is one that its owner cannot read. So root does not write into such a folder, and
//! does not even open what is in it: for that time it is the folder's owner.
//!
//! ```text
//! /var   lib   jetforge   models
//! root   root  its own    whosever: all below is for the one who owns the first that is not root's
//! ```
//!
//! Root's own links are followed on the way; another's is its owner's, wherever it leads.
//!
//! The rights are those of the calling thread and of threads that it starts meanwhile.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::process::{Gid, Uid, getgroups};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::limits::{GROUPS_MAX, LINKS_MAX};

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Does `work` as the owner of `dir`, who is that of the first folder on the way there that is not
/// root's, if root would do it; else as who we are.
///
/// # Errors
/// If that way cannot be looked at, or root may not become somebody else, or not itself again; then
/// it stays who it became.
pub fn as_owner_of<T>(dir: &Path, work: impl FnOnce() -> T) -> io::Result<T> {
    let Some((uid, gid)) = other_owner(dir)? else { return Ok(work()) };
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

/// Becomes the owner of `dir`, as [`as_owner_of`] has it, for good, if root calls. For a process of
/// one thread.
///
/// # Errors
/// If the way there cannot be looked at, or root may not become somebody else.
pub fn become_owner_of(dir: &Path) -> io::Result<()> {
    let Some((uid, gid)) = other_owner(dir)? else { return Ok(()) };
    set_thread_groups(&groups_of(uid, gid))?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// Who it is that root would have to become. Only root can change what is looked at here before
/// somebody else's is met, so what is found stays true.
fn other_owner(dir: &Path) -> io::Result<Option<(Uid, Gid)>> {
    if !is_root() {
        return Ok(None);
    }
    let (mut here, mut n_link) = (PathBuf::from("/"), 0);
    let mut left = names(&std::path::absolute(dir)?);
    while let Some(name) = left.pop() {
        let path = here.join(&name);
        let found = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        if found.uid() != Uid::ROOT.as_raw() {
            return Ok(Some((Uid::from_raw(found.uid()), Gid::from_raw(found.gid()))));
        }
        if name == ".." {
            here.pop();
        } else if found.is_symlink() {
            n_link += 1;
            if n_link > LINKS_MAX {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = std::fs::read_link(&path)?;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            left.extend(names(&target));
        } else {
            here = path;
        }
    }
    Ok(None)
}

/// The names in a path, the last first.
fn names(path: &Path) -> Vec<OsString> {
    let is_name =
        |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(is_name).map(|part| part.as_os_str().to_owned()).collect()
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
    use super::*;

    // What root does as somebody else is in `tests/root.rs`, which says so where nobody is root.

    #[test]
    fn a_user_keeps_the_groups_that_name_it() {
        let users = "root:x:0:0::/:/bin/sh\njetforge:x:990:990::/:/x\n:::\n";
        let groups = "root:x:0:\nvideo:x:44:ada,jetforge\naudio:x:29:jetforger\njetforge:x:990:\n";
        assert_eq!(groups_in(users, groups, 990), [44]);
        assert_eq!(groups_in(users, groups, 1000), [0; 0]);
    }
}
