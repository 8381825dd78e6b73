//! Floating-point numbers as Python prints them, which the C daemon's tools were written in.

/// `repr()` of a number: the shortest digits that give it back, always with a point or an exponent.
pub(super) fn repr(value: impl Into<f64> + std::fmt::LowerExp + Copy) -> String {
    let number: f64 = value.into();
    if !number.is_finite() {
        return if number.is_nan() { "nan".to_owned() } else { format!("{number}") };
    }
    // Rust's shortest digits are those of the value's own type (f32 or f64), as they are in Python.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    if !(-4..16).contains(&exponent) {
        return format!("{sign}{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let fixed = match usize::try_from(exponent) {
        Ok(whole) if digits.len() > whole + 1 => format!("{}.{}", &digits[..=whole], &digits[whole + 1..]),
        Ok(whole) => format!("{digits:0<width$}.0", width = whole + 1),
        Err(_) => format!("0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1)),
    };
    format!("{sign}{fixed}")
}

#[cfg(test)]
mod tests {
    use super::repr;

    #[test]
    fn numbers_look_as_in_python() {
        for (number, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (1234567.0, "1234567.0"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(repr(number), text);
        }
        assert_eq!(repr(0.1_f32), "0.1");
        assert_eq!(repr(f64::from(0.1_f32)), "0.10000000149011612");
    }
}
