//! The images that all tests share, built once by the binary itself.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
    sync::OnceLock,
};

use super::{Place, tiers::in_guest};

const SHARED: [&str; 2] = ["minimal", "base"];

/// The store that holds `minimal` and `base`.
pub(crate) fn store() -> &'static PathBuf {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let data = std::env::var_os("MAYFLY_DATA_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mayfly-data"), PathBuf::from);
        fs::create_dir_all(&data).unwrap();
        let data = data.canonicalize().unwrap();
        // Another test run may be at it: it would build the same again.
        let building = File::create(data.join("test-images.lock")).unwrap();
        building.lock().unwrap();
        // A guest is given them, and has nothing to build them with.
        for image in SHARED.into_iter().filter(|_| !in_guest()) {
            let built = Command::new(env!("CARGO_BIN_EXE_mayfly"))
                .args(["image", "build", image])
                .env("MAYFLY_DATA_DIR", &data)
                .output()
                .unwrap();
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        }
        data.join("images")
    })
}

/// Has the next machine of this size booted again, of whatever image.
pub(crate) fn forget_templates(place: &Place, size: &str) {
    for template in templates(place, size) {
        fs::remove_dir_all(template).unwrap();
    }
}

/// Those of that name, whose images' they may be.
pub(crate) fn templates(place: &Place, name: &str) -> Vec<PathBuf> {
    let images = fs::canonicalize(place.node.data_dir().join("images/sha256")).unwrap();
    let below = |path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let forms = below(images).flat_map(|image| below(image.join("forms")));
    forms.map(|form| form.join("templates").join(name)).filter(|path| path.is_dir()).collect()
}
