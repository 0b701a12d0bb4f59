// An HTTP service that lets gatekey decide about each request.
//
// Environment: GATEKEY_CREDENTIAL, a key of tenant `system` with scope `*:keys:validate`; GATEKEY_TARGET, a gRPC
// target; GATEKEY_CA_FILE, for TLS; PORT.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	gatekeyv1 "example.org/validating/gatekey/v1"
)

// Retries included.
const deadline = time.Second

const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "gatekey.v1.KeyService", "method": "Validate"}],
    "retryPolicy": {
      "maxAttempts": 3,
      "initialBackoff": "0.05s",
      "maxBackoff": "0.5s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

func connect() (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if file := os.Getenv("GATEKEY_CA_FILE"); file != "" {
		tls, err := credentials.NewClientTLSFromFile(file, "")
		if err != nil {
			return nil, err
		}
		transport = tls
	}
	return grpc.NewClient(
		setting("GATEKEY_TARGET", "127.0.0.1:50051"),
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
	)
}

type reports struct {
	gatekey gatekeyv1.KeyServiceClient
	bearer  string
}

// check returns gatekey's decision; an error means that there is none.
func (r *reports) check(ctx context.Context, authorization, scope, clientIP string) (*gatekeyv1.ValidateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", r.bearer)
	return r.gatekey.Validate(ctx, &gatekeyv1.ValidateRequest{
		Credential:     &gatekeyv1.ValidateRequest_Authorization{Authorization: authorization},
		RequiredScopes: []string{scope},
		ClientIp:       clientIP,
	})
}

func (r *reports) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	// The address of the peer. Behind a proxy: the one address that your proxy saw.
	clientIP, _, err := net.SplitHostPort(request.RemoteAddr)
	if err != nil {
		answer(w, http.StatusInternalServerError, map[string]string{"error": "INTERNAL"})
		return
	}
	decision, err := r.check(request.Context(), request.Header.Get("Authorization"), "reports:read", clientIP)
	switch {
	case err != nil:
		log.Printf("gatekey: %v", err)
		answer(w, http.StatusServiceUnavailable, map[string]string{"error": "UNAVAILABLE"})
	case decision.Allowed:
		answer(w, http.StatusOK, map[string]string{"owner": decision.OwnerId})
	default:
		answer(w, int(decision.HttpStatus), map[string]string{"error": decision.Reason.String(), "message": decision.Message})
	}
}

func answer(w http.ResponseWriter, status int, body map[string]string) {
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	// One connection for the life of the process; it is safe for concurrent use.
	connection, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:"+setting("PORT", "8080"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, &reports{
		gatekey: gatekeyv1.NewKeyServiceClient(connection),
		bearer:  "Bearer " + os.Getenv("GATEKEY_CREDENTIAL"),
	}))
}
