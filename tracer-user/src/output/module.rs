//! A guess at the dotted module that a source file belongs to, from its path alone.
//!
//! It must not look at the file system: profiles are read on other machines than they were recorded on.

use super::text::base_name;

/// `django.db.models` for `/usr/lib/python3/dist-packages/django/db/models/__init__.py`.
///
/// Relative to the package folder or the standard library where the path names one, else the file's own name
/// (a package's `__init__.py` goes by its folder).
pub fn module(file: &str) -> String {
    if let Some(frozen) = file.strip_prefix("<frozen ").and_then(|rest| rest.strip_suffix('>')) {
        return frozen.to_owned();
    }
    if file.starts_with('<') {
        return file.to_owned();
    }
    match inside_library(file) {
        Some(inside) => dotted(inside),
        None => {
            let base = base_name(file);
            let folder = file.strip_suffix(base).map_or("", |folder| base_name(folder.trim_end_matches('/')));
            if base == "__init__.py" && !folder.is_empty() { folder.to_owned() } else { dotted(base) }
        }
    }
}

/// What follows the innermost `site-packages`, `dist-packages`, `pythonX.Y` or `pythonXY.zip` folder.
fn inside_library(file: &str) -> Option<&str> {
    let mut rest = file;
    let mut found = None;
    while let Some((folder, inside)) = rest.split_once('/') {
        let versioned = folder.strip_prefix("python").is_some_and(|version| version.starts_with('3'));
        if matches!(folder, "site-packages" | "dist-packages" | "lib-dynload") || versioned {
            found = Some(inside);
        }
        rest = inside;
    }
    found.filter(|inside| !inside.is_empty())
}

fn dotted(path: &str) -> String {
    let path = path.strip_suffix(".py").or_else(|| path.strip_suffix(".pyc")).unwrap_or(path);
    let path = path.strip_suffix("/__init__").unwrap_or(path);
    path.trim_matches('/').replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::module;

    #[test]
    fn modules_of_paths() {
        for (file, expected) in [
            ("/srv/app/views.py", "views"),
            ("/srv/app/__init__.py", "app"),
            ("views.py", "views"),
            ("__init__.py", "__init__"),
            ("/usr/lib/python3.11/json/decoder.py", "json.decoder"),
            ("/usr/lib/python3.11/json/__init__.py", "json"),
            ("/usr/lib/python3/dist-packages/django/db/models.py", "django.db.models"),
            ("/opt/venv/lib/python3.12/site-packages/numpy/__init__.py", "numpy"),
            ("/srv/x/python-projects/tool.py", "tool"),
            ("/usr/lib/python311.zip/os.py", "os"),
            ("<frozen importlib._bootstrap>", "importlib._bootstrap"),
            ("<string>", "<string>"),
            ("", ""),
            ("/", ""),
        ] {
            assert_eq!(module(file), expected, "{file}");
        }
    }
}
