//! Writes the seeds of all targets into their folders under `corpus/`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for (target, name, input) in fuzz::seeds::all() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), input)?;
    }
    Ok(())
}
