//! Names for tasks, from the paths of their models: short, safe in names of files and modules, and each its own.

use crate::output::copy::is_wanted;

/// Longest name, in characters.
const LONGEST: usize = 64;
/// Parts of a path, from its end, that a name is made of at most.
const MOST_PARTS: usize = 4;

/// A name for each path: its last part, more parts where that is not enough to tell them apart, then numbers.
///
/// Names differ in more than the case of letters, as some file systems want it, and none is that of a file that a merge
/// copies.
pub(crate) fn task_names(paths: &[&str]) -> Vec<String> {
    let parts: Vec<Vec<&str>> = paths.iter().map(|path| parts(path)).collect();
    let mut depths = vec![1_usize; paths.len()];
    let name = |i: usize, depth: usize| {
        let name = safe(&parts[i][parts[i].len().saturating_sub(depth)..]);
        if is_wanted(&name) { format!("task-{name}") } else { name }
    };
    for _ in 1..MOST_PARTS {
        let keys: Vec<String> = depths.iter().enumerate().map(|(i, d)| name(i, *d).to_lowercase()).collect();
        for (i, depth) in depths.iter_mut().enumerate() {
            if keys.iter().filter(|key| **key == keys[i]).count() > 1 {
                *depth += 1;
            }
        }
    }
    let mut names: Vec<String> = Vec::with_capacity(paths.len());
    for (i, depth) in depths.iter().enumerate() {
        let plain = name(i, *depth);
        let numbered = (2..).map(|n| format!("{plain}-{n}"));
        let is_free = |name: &String| !names.iter().any(|taken| taken.eq_ignore_ascii_case(name));
        // There are more numbers than names.
        names.extend(std::iter::once(plain.clone()).chain(numbered).find(is_free));
    }
    names
}

/// The parts of a path that say something, without the ending of a file of tensors.
fn parts(path: &str) -> Vec<&str> {
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix(".safetensors").unwrap_or(path);
    path.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | "..")).collect()
}

/// The parts as one name of letters, digits, `-` and `_`.
fn safe(parts: &[&str]) -> String {
    let mut name = String::new();
    for c in parts.join("-").chars() {
        match c {
            c if c.is_ascii_alphanumeric() || c == '_' => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    // All of it is ASCII by now.
    name.truncate(LONGEST);
    let name = name.trim_end_matches('-');
    if name.is_empty() { "task".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_last_part_of_a_path_made_safe() {
        for (path, name) in [
            ("models/math", "math"),
            ("../math/", "math"),
            ("math.safetensors", "math"),
            ("/a/Llama-3.1 8B", "Llama-3-1-8B"),
            ("..", "task"),
            ("größe", "gr-e"),
            ("../../etc/..", "etc"),
            ("a\u{1b}[2J", "a-2J"),
        ] {
            assert_eq!(task_names(&[path]), [name], "{path}");
        }
        assert_eq!(task_names(&["x".repeat(1000).as_str()])[0].len(), LONGEST);
    }

    #[test]
    fn paths_that_end_alike_take_more_of_themselves_and_then_numbers() {
        assert_eq!(task_names(&["math/final", "code/final", "law"]), ["math-final", "code-final", "law"]);
        assert_eq!(task_names(&["a", "a", "A"]), ["a", "a-2", "A-3"]);
        assert_eq!(task_names(&["x/Final", "y/final"]), ["x-Final", "y-final"]);
        assert_eq!(task_names(&["a b", "a.b", "a-b-2"]), ["a-b", "a-b-2", "a-b-2-2"]);
    }

    #[test]
    fn no_name_is_that_of_a_file_that_is_copied() {
        assert_eq!(task_names(&["models/LICENSE", "vocab"]), ["task-LICENSE", "task-vocab"]);
    }
}
