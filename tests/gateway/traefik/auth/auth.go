// Package auth stands in for a fork that the module proxy does not serve: every login is refused, as tests use none.
package auth

import "net/http"

// BasicAuth refuses.
type BasicAuth struct {
	Realm   string
	Secrets func(user, realm string) string
}

// RequireAuth answers 401.
func (*BasicAuth) RequireAuth(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "this build has no basic authentication", http.StatusUnauthorized)
}

// CheckSecret knows no secret.
func CheckSecret(_, _ string) bool { return false }

// DigestAuth refuses.
type DigestAuth struct{}

// NewDigestAuthenticator makes one that refuses.
func NewDigestAuthenticator(string, func(user, realm string) string) *DigestAuth { return &DigestAuth{} }

// CheckAuth knows nobody.
func (*DigestAuth) CheckAuth(*http.Request) (string, *string) { return "", nil }

// RequireAuth answers 401.
func (*DigestAuth) RequireAuth(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "this build has no digest authentication", http.StatusUnauthorized)
}

// RequireAuthStale answers 401.
func (d *DigestAuth) RequireAuthStale(w http.ResponseWriter, r *http.Request) { d.RequireAuth(w, r) }

// DigestAuthParams finds none.
func DigestAuthParams(string) map[string]string { return nil }
