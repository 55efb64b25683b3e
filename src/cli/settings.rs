//! `--set KEY=VALUES`: which values a sweep gives which places of a recipe, and every combination of them.

use crate::error::{Cause, Error, Result};

/// The most combinations of a sweep.
const MOST: usize = 1000;
/// The most digits of a number, behind its point and in all: so that steps are exact.
const DIGITS: usize = 15;

/// One key with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The place in the recipe.
    pub key: String,
    /// What stands there in turn, as YAML writes it.
    pub values: Vec<String>,
}

/// One combination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Point {
    /// The name of its folder: `lambda=0.2`, or `lambda=0.2,density=0.3`.
    pub name: String,
    /// Its values, in the order of the keys.
    pub values: Vec<String>,
}

/// Every combination of the settings that are written in `--set`, the last key's values changing fastest.
pub(super) fn points(written: &[String]) -> Result<(Vec<Setting>, Vec<Point>)> {
    let settings: Vec<Setting> = written.iter().map(|text| setting(text)).collect::<Result<_>>()?;
    for (i, setting) in settings.iter().enumerate() {
        if settings[..i].iter().any(|other| other.key == setting.key) {
            return Err(wrong(&format!("`{}` is set twice", setting.key), "give all of its values in one --set"));
        }
    }
    let count = settings.iter().try_fold(1_usize, |n, s| n.checked_mul(s.values.len())).filter(|n| *n <= MOST);
    let Some(count) = count else {
        return Err(wrong(
            &format!("more than {MOST} combinations"),
            "give fewer values, or sweep one key after another",
        ));
    };
    let short = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let is_clear = |key: &str| settings.iter().filter(|s| short(&s.key) == short(key)).count() == 1;
    let names: Vec<String> =
        settings.iter().map(|s| if is_clear(&s.key) { short(&s.key) } else { s.key.clone() }).collect();
    let mut points = Vec::with_capacity(count);
    for i in 0..count {
        let mut rest = i;
        let mut values: Vec<String> = Vec::new();
        for setting in settings.iter().rev() {
            values.push(setting.values[rest % setting.values.len()].clone());
            rest /= setting.values.len();
        }
        values.reverse();
        let parts: Vec<String> = names.iter().zip(&values).map(|(key, value)| format!("{key}={value}")).collect();
        points.push(Point { name: folder_name(&parts.join(",")), values });
    }
    for (i, point) in points.iter().enumerate() {
        if points[..i].iter().any(|other| other.name == point.name) {
            return Err(wrong(
                &format!("two combinations would be called `{}`", point.name),
                "give values that differ",
            ));
        }
    }
    Ok((settings, points))
}

/// A name without what folders' names cannot or should not have.
fn folder_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "=,.+-_".contains(c) { c } else { '_' }).collect()
}

fn wrong(message: &str, hint: &str) -> Error {
    Error::input(format!("--set: {message}")).because(Cause::Usage).hint(hint)
}

/// One `--set`.
fn setting(text: &str) -> Result<Setting> {
    let form =
        "write KEY=FROM:TO:STEP, whose TO is included, or KEY=VALUE,VALUE,…, such as parameters.lambda=0.2:1.0:0.1";
    let (key, values) = text.split_once('=').ok_or_else(|| wrong(&format!("`{text}` has no `=`"), form))?;
    if key.is_empty() || values.is_empty() {
        return Err(wrong(&format!("`{text}` lacks a key or values"), form));
    }
    let values = match values.split(':').collect::<Vec<_>>()[..] {
        [_] => values.split(',').map(|value| value.trim().to_owned()).collect(),
        [from, to, step] => steps(from, to, step).map_err(|why| wrong(&format!("`{text}`: {why}"), form))?,
        _ => return Err(wrong(&format!("`{text}`: a range has three numbers"), form)),
    };
    let values: Vec<String> = values;
    for (i, value) in values.iter().enumerate() {
        if value.is_empty() || values[..i].contains(value) {
            return Err(wrong(&format!("`{text}`: `{value}` is empty or stands there twice"), form));
        }
    }
    Ok(Setting { key: key.into(), values })
}

/// A decimal number as digits and how many of them stand behind the point.
fn decimal(text: &str) -> Option<(i128, usize)> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, behind) = digits.split_once('.').unwrap_or((digits, ""));
    let all = format!("{whole}{behind}");
    let is_number = !all.is_empty() && all.len() <= DIGITS && all.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| all.parse::<i128>().ok()).flatten().map(|n| (sign * n, behind.len()))
}

/// Numbers from one to another, both included, as decimals.
fn steps(from: &str, to: &str, step: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| {
        decimal(text.trim()).ok_or_else(|| format!("`{text}` is no decimal number of up to {DIGITS} digits"))
    };
    let (all, behind): (Vec<i128>, Vec<usize>) = [number(from)?, number(to)?, number(step)?].into_iter().unzip();
    let places = behind.iter().copied().max().unwrap_or_default();
    let scaled: Vec<i128> = all.iter().zip(&behind).map(|(n, b)| n * 10_i128.pow((places - b) as u32)).collect();
    let [from_n, to_n, step_n] = scaled[..] else { return Err("three numbers".into()) };
    if step_n == 0 || (to_n - from_n) * step_n < 0 {
        return Err(format!("steps of {step} do not lead from {from} to {to}"));
    }
    if (to_n - from_n) % step_n != 0 {
        return Err(format!("{to} is not a whole number of steps of {step} from {from}"));
    }
    let count = (to_n - from_n) / step_n;
    if count >= MOST as i128 {
        return Err(format!("more than {MOST} values"));
    }
    Ok((0..=count).map(|i| written(from_n + i * step_n, places)).collect())
}

/// The number n / 10^places, without needless zeros.
fn written(n: i128, places: usize) -> String {
    let digits = format!("{:0>width$}", n.unsigned_abs(), width = places + 1);
    let (whole, behind) = digits.split_at(digits.len() - places);
    let behind = behind.trim_end_matches('0');
    let sign = if n < 0 { "-" } else { "" };
    if behind.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{behind}") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<String> {
        setting(text).unwrap().values
    }

    #[test]
    fn ranges_are_decimal_and_end_with_their_last_number() {
        assert_eq!(values("a=0.2:1.0:0.2"), ["0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(values("a=1:-1:-0.5"), ["1", "0.5", "0", "-0.5", "-1"]);
        assert_eq!(values("a=10:30:10"), ["10", "20", "30"]);
        assert_eq!(values("a=0.05:0.05:1"), ["0.05"]);
        assert_eq!(values("a=0.1,x,true"), ["0.1", "x", "true"]);
    }

    #[test]
    fn what_is_no_setting_is_refused_with_its_form() {
        for text in [
            "a",
            "=1",
            "a=",
            "a=1:2",
            "a=1:2:3:4",
            "a=1:2:0",
            "a=1:2:-1",
            "a=0:1:0.3",
            "a=0:1:1e-1",
            "a=0:1e9:1",
            "a=1,1",
            "a=1,,2",
            "a=x:y:z",
        ] {
            let error = setting(text).unwrap_err();
            assert_eq!((error.exit_code(), error.cause()), (1, Cause::Usage), "{text}");
            assert!(error.hints()[0].contains("KEY=FROM:TO:STEP"));
        }
    }

    #[test]
    fn several_keys_make_every_combination_with_names_that_tell_them_apart() {
        let all = |texts: &[&str]| points(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        let names = |texts: &[&str]| all(texts).unwrap().1.into_iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(
            names(&["parameters.lambda=1:2:1", "task_vector_stages.0.parameters.keep=0.5,0.7"]),
            ["lambda=1,keep=0.5", "lambda=1,keep=0.7", "lambda=2,keep=0.5", "lambda=2,keep=0.7"]
        );
        assert_eq!(
            names(&["models.0.parameters.weight=1", "models.1.parameters.weight=2"]),
            ["models.0.parameters.weight=1,models.1.parameters.weight=2"]
        );
        assert!(all(&["a=1", "a=2"]).is_err());
        assert!(all(&["a=1:40:1", "b=1:40:1"]).unwrap_err().to_string().contains("more than 1000"));
        assert!(all(&["a=x/y,x y"]).unwrap_err().to_string().contains("would be called"));
    }
}
