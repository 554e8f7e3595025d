//! Where the control looks: the host's files below an overlay, the host's kernel views, nothing that stays.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::chroot,
};

use crate::ground::PROBER;

/// What a control may write to disk: somewhat more than a probe tries.
const SIZE: &str = "size=256m,mode=755";

/// Leaves the host's mounts and System V's ids, and makes the scene below `folder` its root. The working directory stays
/// outside of it, which is what F04 is about.
pub(super) fn enter(folder: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let scene = folder.join("control");
    fs::create_dir(&scene)?;
    tmpfs(&scene)?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| scene.join(name));
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory)?;
    }
    let layers = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))?;
    for view in ["proc", "sys", "dev"] {
        let (from, to) = (Path::new("/").join(view), root.join(view));
        bind(&from, &to)?;
        if view != "proc" {
            // Its nodes are the host's. No file is to be made beside them.
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, &to, None::<&str>, flags, None::<&str>)?;
        }
    }
    for place in ["tmp", "job", "dev/shm"] {
        let place = root.join(place);
        if place.exists() || fs::create_dir_all(&place).is_ok() {
            tmpfs(&place)?;
        }
    }
    fs::write(root.join("tmp/left-by-somebody"), "")?;
    // The canary's folder may lie on another file system than the root.
    let shown = below(&root, folder);
    fs::create_dir_all(&shown)?;
    bind(folder, &shown)?;
    let prober = below(&root, Path::new(PROBER));
    fs::write(&prober, images::PROBER)?;
    fs::set_permissions(&prober, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(chroot(&root)?)
}

fn tmpfs(place: &Path) -> io::Result<()> {
    Ok(mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some(SIZE))?)
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
